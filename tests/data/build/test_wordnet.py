from __future__ import annotations

import pytest
from wordnet_maker import LICENCE_LINES, NOUNS, VERBS, line

from ocp_mamba.data.build.chains import Chain, draw_chains
from ocp_mamba.data.build.tmd import Codes
from ocp_mamba.data.build.wordnet import read_wordnet, wordnet_chains
from ocp_mamba.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data.noun").write_text(LICENCE_LINES + "".join(NOUNS), encoding="utf-8")
    (tmp_path / "data.verb").write_text(LICENCE_LINES + "".join(VERBS), encoding="utf-8")
    return tmp_path


def test_leaves_climb_by_their_first_hypernym_to_the_root(folder):
    chains, report = wordnet_chains(folder, sequences=5, siblings=1, seed=0)
    assert sorted(chains, key=lambda c: c.concepts) == [
        Chain(("moss", "w0", "living thing", "entity"), "wordnet", Codes(1, 1, 21)),
        Chain(("sea snail", "w0", "living thing", "entity"), "wordnet", Codes(1, 1, 6)),
        Chain(("walk", "travel", "move"), "wordnet", Codes(15, 10, 39)),
    ]
    assert (report.found, report.kept, report.short, report.repeating) == (5, 3, 1, 1)


def test_synsets_are_read_whole(folder):
    synsets = read_wordnet(folder)
    assert len(synsets) == len(NOUNS) + len(VERBS)
    assert synsets["n", 3].has_hyponyms
    assert synsets["n", 3].hypernym == ("n", 2)
    assert synsets["n", 9].hypernym is None
    assert synsets["v", 3].frames == (2, 8)
    assert synsets["n", 5].lexname == "noun.plant"
    assert synsets["n", 2].words == (("living thing", 0), ("animate thing", 0))
    assert synsets["n", 4].pointers == (("#m", ("n", 1)), ("@", ("n", 3)), ("@", ("n", 1)))


def test_pointers_between_single_words_are_left_out(folder):
    walk = line(3, 38, "v", ["walk"], [("@", 2, "v"), ("+", 3, "n")], [2])
    walk = walk.replace("+ 00000003 n 0000", "+ 00000003 n 0101")
    (folder / "data.verb").write_text("".join([*VERBS[:2], walk]), encoding="utf-8")
    assert read_wordnet(folder)["v", 3].pointers == (("@", ("v", 2)),)


def test_more_sequences_than_there_are(folder):
    with pytest.raises(DatasetError, match="the 3 chains give 5 sequences, 6 wanted"):
        wordnet_chains(folder, sequences=6, siblings=1, seed=0)


def test_a_circle_of_hypernyms_ends(folder):
    circle = [
        line(1, 38, "v", ["inhibit"], [("@", 2, "v"), ("~", 2, "v")], [8]),
        line(2, 38, "v", ["restrain"], [("@", 1, "v"), ("~", 1, "v"), ("~", 3, "v")], [8]),
        line(3, 38, "v", ["hold"], [("@", 2, "v")], [8]),
    ]
    (folder / "data.verb").write_text("".join(circle), encoding="utf-8")
    chains, _ = wordnet_chains(folder, sequences=5, siblings=1, seed=0)
    assert ("hold", "restrain", "inhibit") in {c.concepts for c in chains}


@pytest.mark.parametrize(
    "bad",
    [
        "00000001 03 n 01 entity\n",  # ends too early
        "00000001 99 n 01 entity 0 000 | gloss\n",  # no such lexicographer file
        "00000001 03 n zz entity 0 000 | gloss\n",
        "00000001 03 n 00 000 | gloss\n",  # no word
        "hello\n",
    ],
)
def test_bad_lines_are_named(folder, bad):
    (folder / "data.noun").write_text(LICENCE_LINES + bad, encoding="utf-8")
    with pytest.raises(DatasetError, match=r"data\.noun:3: is no synset in WordNet's format"):
        read_wordnet(folder)


def test_dangling_hypernym(folder):
    (folder / "data.verb").write_text(line(3, 38, "v", ["walk"], [("@", 2, "v")], [2]))
    with pytest.raises(DatasetError, match="synset v 00000002 is pointed to but does not exist"):
        wordnet_chains(folder, sequences=1, siblings=1, seed=0)


def test_folder_without_the_files(tmp_path):
    with pytest.raises(DatasetError, match=r"data\.noun cannot be read.*holds data\.noun and"):
        read_wordnet(tmp_path)
    for name in ("data.noun", "data.verb"):
        (tmp_path / name).write_text(LICENCE_LINES)
    with pytest.raises(DatasetError, match="hold no synsets"):
        read_wordnet(tmp_path)


def families(n: int, size: int) -> list[Chain]:
    return [Chain((f"leaf {i} {j}", f"p{i}", "root"), "s") for i in range(n) for j in range(size)]


def test_siblings_trade_concepts_for_sequences():
    chains = families(200, 6)
    parents = {}
    for siblings in (1, 3, 6):
        drawn = draw_chains(chains, sequences=300, siblings=siblings, seed=0)
        assert 300 <= len(drawn) < 300 + siblings
        assert len(set(drawn)) == len(drawn)
        parents[siblings] = len({c.concepts[1] for c in drawn})
    assert parents[6] == 50
    assert parents[1] > parents[3] > parents[6]


def test_drawing_depends_on_the_seed_alone():
    chains = families(50, 4)

    def draw(seed):
        return draw_chains(chains, sequences=60, siblings=2, seed=seed)

    assert draw(1) == draw(1)
    assert set(draw(1)) != set(draw(2))
    everything = draw_chains(chains, sequences=200, siblings=2, seed=0)
    assert sorted(c.concepts for c in everything) == sorted(c.concepts for c in chains)


@pytest.mark.parametrize("name", ["sequences", "siblings"])
def test_drawing_nothing_is_refused(name):
    with pytest.raises(DatasetError, match=f"{name} must be at least 1, got 0"):
        draw_chains(families(2, 2), **{"sequences": 1, "siblings": 1, "seed": 0} | {name: 0})
