from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocp_mamba.data.build.chains import Chain, clean_chains, clean_text, read_chains
from ocp_mamba.data.build.tmd import UNKNOWN, Codes
from ocp_mamba.errors import DatasetError


def row(**changed) -> dict:
    return {
        "chain_id": "c1",
        "concepts": ["ormer", "sea_snail", "living_thing"],
        "source": "wordnet",
        "chain_length": 3,
        "metadata": {"pos": "n", "lexname": "noun.animal"},
    } | changed


@pytest.fixture
def write(tmp_path):
    def inner(*rows, name="c.jsonl"):
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    return inner


def test_files_are_read_in_order_with_spaces_and_codes(write):
    no_codes = {"concepts": ["a", " b  c ", "d\te"], "source": " swo "}
    first = write(row(), "", no_codes)
    second = write(row(metadata={"pos": "v"}), name="d.jsonl")
    assert read_chains([first, second]) == [
        Chain(("ormer", "sea snail", "living thing"), "wordnet", Codes(1, 1, 6)),
        Chain(("a", "b c", "d e"), "swo", UNKNOWN),
        Chain(("ormer", "sea snail", "living thing"), "wordnet", Codes(0, 8, 0)),
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ('{"concepts": [', "not JSON"),
        ("[" * 100_000, "not JSON that can be read: it is nested too deeply"),
        ('{"chain_length": ' + "9" * 5000 + "}", "not JSON .*5000 digits"),
        ('{"concepts": ["a", "\\ud800", "c"]}', "holds half a surrogate pair"),
        ('{"metadata": {"pos": 1e999}, "source": "x", "concepts": ["a"]}', "key 'metadata'"),
        ("[1, 2]", "JSON list found, an object wanted"),
        (row(concepts="a b c"), "key 'concepts': 'a b c' found, a list of texts wanted"),
        (row(concepts=["a", 2, "c"]), "key 'concepts'"),
        (row(concepts=["a", "_ ", "c"]), "key 'concepts': concept 1 is blank"),
        ({"source": "x"}, "key 'concepts': None found"),
        (row(source=""), "key 'source': '' found"),
        (row(source=7), "key 'source': 7 found"),
        (row(chain_length=4), "key 'chain_length': 4 found, but there are 3 concepts"),
        (row(metadata=[]), r"key 'metadata': \[\] found"),
        (row(metadata={"pos": "q"}), "key 'metadata': part of speech 'q'"),
        (row(metadata={"pos": ["n"]}), "key 'metadata'"),
        (row(metadata={"lexname": "noun.zoo"}), r"key 'metadata': lexicographer file 'noun\.zoo'"),
    ],
)
def test_bad_lines_are_named_by_file_and_number(write, bad, message):
    path = write(row(), "", bad)
    with pytest.raises(DatasetError, match=rf"c\.jsonl, line 3: .*{message}"):
        read_chains([path])


def test_unreadable_files(tmp_path):
    with pytest.raises(DatasetError, match=r"absent\.jsonl: cannot be read"):
        read_chains([tmp_path / "absent.jsonl"])
    (tmp_path / "b.jsonl").write_bytes(b'\n{"concepts": ["\xff"]}')
    with pytest.raises(DatasetError, match=r"b\.jsonl, line 2: not UTF-8 text"):
        read_chains([tmp_path / "b.jsonl"])


def test_byte_order_mark_is_no_error(tmp_path):
    (tmp_path / "bom.jsonl").write_text(json.dumps(row()), encoding="utf-8-sig")
    assert len(read_chains([tmp_path / "bom.jsonl"])) == 1


def numbered(n: int, start: int = 0) -> tuple[str, ...]:
    return tuple(str(i) for i in range(start, start + n))


def test_cleaning_counts_what_it_leaves_out():
    chains = [
        Chain(numbered(3), "a"),
        Chain(numbered(3), "b"),  # the same concepts of another source
        Chain(numbered(2), "a"),
        Chain(("x", "y", "x"), "a"),
        Chain(numbered(20, 5), "a"),
        Chain(numbered(15, 5), "a"),  # what the one above was cut to
    ]
    kept, report = clean_chains(chains)
    assert kept == [Chain(numbered(3), "a"), Chain(numbered(15, 5), "a")]
    counts = (report.found, report.kept, report.duplicates, report.short, report.repeating)
    assert counts == (6, 2, 2, 1, 1)
    assert (report.cut, report.long) == (1, 0)
    kept, report = clean_chains(chains, cut=False)
    assert kept == [Chain(numbered(3), "a"), Chain(numbered(15, 5), "a")]
    assert (report.cut, report.long, report.duplicates) == (0, 1, 1)
    assert "1 longer than 15" in str(report)


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=18), max_size=30), st.booleans())
def test_cleaned_chains_are_sound_and_the_counts_add_up(lists, cut):
    kept, report = clean_chains([Chain(tuple(c), "s") for c in lists], cut=cut)
    concepts = [c.concepts for c in kept]
    assert all(3 <= len(c) <= 15 and len(set(c)) == len(c) for c in concepts)
    assert len(set(concepts)) == len(concepts) == report.kept
    dropped = report.short + report.long + report.repeating + report.duplicates
    assert report.found == len(lists) == report.kept + dropped
    assert clean_chains(kept)[0] == kept


def test_clean_text():
    assert clean_text("_living__thing \t of\u00a0sorts ") == "living thing of sorts"
