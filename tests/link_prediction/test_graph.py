"""The folder of a knowledge graph, and what is refused in it by name and line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from graph_maker import write_graph

from ocp_mamba.errors import DatasetError
from ocp_mamba.link_prediction.graph import read_graph


def test_a_folder_is_read_as_it_stands(tmp_path: Path) -> None:
    graph = read_graph(write_graph(tmp_path / "g", parents=3, children=4))
    assert graph.n_entities == 1 + 3 * (2 + 4)
    assert graph.relations == ["_hypernym", "_member_meronym"]
    assert len(graph.pairs("train")) == 3 + 3 * 2
    assert len(graph.pairs("dev")) == len(graph.pairs("test")) == 3
    head, parent = graph.pairs("dev")[1]
    assert (graph.ids[head], graph.ids[parent]) == ("c010", "p01")
    assert graph.names[parent] == "wordp01"
    assert len(graph.pairs("train", "_member_meronym")) == 12


def test_the_digest_is_that_of_the_content(tmp_path: Path) -> None:
    one, two = write_graph(tmp_path / "a"), write_graph(tmp_path / "b")
    assert read_graph(one).digest == read_graph(two).digest
    texts = two / "entity2text.txt"
    texts.write_text(texts.read_text().replace("a kind of", "a sort of", 1))
    assert read_graph(one).digest != read_graph(two).digest


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("train.tsv", "c001\t_hypernym", "train.tsv, line 109: 2 cells found, 3 .* wanted"),
        ("dev.tsv", "c001\t_hypernym\tnowhere", "dev.tsv, line 13: the id 'nowhere' is not in"),
        ("test.tsv", "c012\t_hypernym\tp01", "test.tsv, line 13: the same triple as .*train.tsv"),
        ("entity2text.txt", "p01\tagain", "entity2text.txt, line 122: the id 'p01' occurs twice"),
        ("entity2text.txt", "p99", "entity2text.txt, line 122: 1 cells found, 2 "),
        ("entity2text.txt", "p99\t ", "none empty"),
    ],
)
def test_a_bad_line_is_refused_by_file_and_number(
    tmp_path: Path, file: str, line: str, said: str
) -> None:
    folder = write_graph(tmp_path)
    with (folder / file).open("a", encoding="utf-8") as opened:
        opened.write(line + "\n")
    if file == "train.tsv":
        said = said.replace("109", str(len((folder / file).read_text().splitlines())))
    with pytest.raises(DatasetError, match=said):
        read_graph(folder)


def test_what_is_missing_empty_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"lacks entity2text.txt, train.tsv, dev.tsv, test.tsv"):
        read_graph(tmp_path / "nothing")
    folder = write_graph(tmp_path / "g")
    (folder / "dev.tsv").write_text("\n")
    with pytest.raises(DatasetError, match=r"dev.tsv: is empty"):
        read_graph(folder)
    (folder / "dev.tsv").write_text("g00\t_member_meronym\tc011\n")
    with pytest.raises(DatasetError, match=r"dev.tsv: has no triple of the relation _hypernym"):
        read_graph(folder)
    (folder / "dev.tsv").write_bytes(b"\xff\xfe\t")
    with pytest.raises(DatasetError, match=r"dev.tsv: cannot be read as UTF-8"):
        read_graph(folder)


def test_windows_line_ends_and_a_byte_order_mark_change_nothing(tmp_path: Path) -> None:
    folder = write_graph(tmp_path / "g")
    plain = read_graph(folder)
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    again = read_graph(folder)
    assert again.texts == plain.texts
    assert all(np.array_equal(again.triples[s], plain.triples[s]) for s in plain.triples)
