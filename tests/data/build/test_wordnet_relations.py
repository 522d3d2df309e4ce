"""Chains out of WordNet that follow several relations, with their confidences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wordnet_maker import COUNTS, RELATION_NOUNS, line, write_relations

from ocp_mamba.data.build.chains import Chain
from ocp_mamba.data.build.tmd import Codes
from ocp_mamba.data.build.wordnet import read_wordnet
from ocp_mamba.data.build.wordnet_relations import RELATIONS, relation_chains, sense_shares
from ocp_mamba.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    return write_relations(tmp_path)


def drawn(folder, relations=tuple(RELATIONS), sequences=1, seed=0):
    return relation_chains(folder, relations, sequences=sequences, siblings=9, seed=seed)


def test_walks_go_up_by_relations_that_are_named_and_weighed(folder):
    chains, report = drawn(folder, ("hypernym", "part"), sequences=9)
    # hand as a noun 7 and 1 uses, as a verb none: (7 + 1) / (8 + 3)
    hand = 8 / 11
    up = ("finger", "hand", "body", "entity")
    part, is_a = "is part of", "is a"
    codes = Codes(2, 1, 9)
    assert sorted(chains, key=lambda c: c.concepts) == [
        Chain(("nail", *up), "wordnet", codes, (part, part, part, is_a), (1, hand, hand, 1)),
        Chain(("pinkie", *up), "wordnet", codes, (is_a, part, part, is_a), (1, hand, hand, 1)),
        Chain(("thumb", *up), "wordnet", codes, (is_a, part, part, is_a), (1, hand, hand, 1)),
    ]
    assert report.found == report.kept == 3  # no walk of one relation alone


def test_verbs_lead_to_what_they_entail_and_to_the_field_that_they_belong_to(folder):
    chains, _ = drawn(folder, sequences=10)
    (found,) = (c for c in chains if c.concepts[0] == "pass on")
    hand = pytest.approx(1 / 11)
    if found.concepts[2] == "body":
        assert found.concepts == ("pass on", "hand", "body", "entity")
        assert found.relations == ("entails", "is a term of", "is a")
        assert found.confidences == (hand, hand, 1)
    else:
        assert found.concepts == ("pass on", "hand", "move")
        assert found.relations == ("entails", "is a")
        assert found.confidences == (hand, hand)


def test_every_step_that_a_synset_has_is_taken_by_some_seed(folder):
    third = {
        c.concepts[2] for seed in range(20) for c in drawn(folder, sequences=10, seed=seed)[0]
        if c.concepts[0] == "pass on"
    }  # fmt: skip
    assert third == {"move", "body"}


def test_one_relation_alone_keeps_its_chains(folder):
    chains, _ = drawn(folder, ("part",))
    assert {c.concepts for c in chains} == {("nail", "finger", "hand", "body")}
    assert chains[0].relations == ("is part of",) * 3


def test_walks_depend_on_the_seed_alone(folder):
    assert drawn(folder, sequences=10, seed=3) == drawn(folder, sequences=10, seed=3)


def test_a_circle_and_a_long_way_end(folder):
    """30 synsets in a row, each part of the next and a kind of the one before it."""
    nouns = [
        line(i, 8, "n", [f"s{i}"], [("#p", i % 30 + 1, "n"), ("@", (i - 2) % 30 + 1, "n")])
        for i in range(1, 31)
    ]
    nouns.append(line(40, 8, "n", ["start"], [("#m", 1, "n")]))
    chains = [
        chain
        for seed in range(10)
        for chain in drawn(
            write_relations(folder, nouns), ("hypernym", "part", "member"), seed=seed
        )[0]
    ]
    assert {len(c.concepts) for c in chains} == {15}
    assert {c.concepts[:3] for c in chains} == {("start", "s1", "s2"), ("start", "s1", "s30")}


@given(
    edges=st.lists(
        st.tuples(st.integers(1, 12), st.sampled_from(["@", "#p", "#m"]), st.integers(1, 12)),
        min_size=12,
    ),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_each_step_is_one_of_wordnets(edges, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wordnet")
    leaf = line(99, 8, "n", ["leaf"], [("@", 1, "n"), ("#p", 2, "n")])
    nouns = [
        line(i, 8, "n", [f"s{i}"], [(symbol, b, "n") for a, symbol, b in edges if a == i])
        for i in range(1, 13)
    ]
    write_relations(folder, [*nouns, leaf])
    try:
        chains, _ = drawn(folder, ("hypernym", "part", "member"), seed=seed)
    except DatasetError as error:
        assert "0 chains give 0 sequences" in str(error)  # noqa: PT017
        return
    names = dict(RELATIONS.values())
    stated = {(f"s{a}", names[symbol], f"s{b}") for a, symbol, b in edges}
    stated |= {("leaf", "is a", "s1"), ("leaf", "is part of", "s2")}
    known = {s.lemma for s in read_wordnet(folder).values()}
    for chain in chains:
        assert 3 <= len(chain.concepts) == len(set(chain.concepts)) <= 15
        assert len(set(chain.relations)) > 1
        assert set(chain.concepts) <= known
        noun_steps = zip(chain.concepts, chain.relations, chain.concepts[1:], strict=False)
        if chain.concepts[0].startswith(("s", "leaf")):
            assert set(noun_steps) <= stated


def test_shares_of_a_word_s_meanings_add_up(folder):
    shares = sense_shares(folder, read_wordnet(folder))
    assert shares["n", 3] == 8 / 11
    assert shares["n", 8] == 2 / 11
    assert shares["v", 2] == 1 / 11
    assert shares["n", 4] == shares["n", 5] == 1.0


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("hand 7", r"cntlist\.rev:5: is no count in WordNet's format: 'hand 7"),
        ("hand%1:99:00:: 1 7", r"cntlist\.rev:5: is no count"),
        ("hand%1:08:00:: 1 many", r"cntlist\.rev:5: is no count"),
        ("hand%1 1 7", r"cntlist\.rev:5: is no count"),
    ],
)
def test_bad_counts_are_named(folder, bad, message):
    write_relations(folder, counts=[*COUNTS, bad])
    with pytest.raises(DatasetError, match=message):
        drawn(folder)


def test_a_folder_without_counts(folder):
    (folder / "cntlist.rev").unlink()
    with pytest.raises(DatasetError, match=r"cntlist\.rev cannot be read.*confidences"):
        drawn(folder)
    (folder / "cntlist.rev").write_bytes(b"\xff\xfe")
    with pytest.raises(DatasetError, match=r"cntlist\.rev cannot be read"):
        drawn(folder)


def test_dangling_pointer(folder):
    write_relations(folder, [*RELATION_NOUNS, line(50, 8, "n", ["lost"], [("#p", 51, "n")])])
    with pytest.raises(DatasetError, match="synset n 00000051 is pointed to but does not exist"):
        drawn(folder)
