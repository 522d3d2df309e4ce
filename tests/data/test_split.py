from __future__ import annotations

import numpy as np
import pytest
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.split import chain_groups, families, split_chains, split_report


def flat(chains) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([v for c in chains for v in c], dtype=np.int32)
    return values, np.cumsum([0] + [len(c) for c in chains], dtype=np.int64)


def examples_of(chain, first: int) -> set[tuple[int, ...]]:
    return {tuple(chain[: k + 1]) for k in range(first, len(chain))}


@st.composite
def few_concept_chains(draw):
    """Few concepts, so that chains share beginnings often; any first targets."""
    chains = draw(st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=6), min_size=1))
    first = [draw(st.integers(1, len(c) - 1)) for c in chains]
    source = draw(st.lists(st.integers(0, 1), min_size=len(chains), max_size=len(chains)))
    return chains, first, source


@given(few_concept_chains(), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_example_is_in_two_splits(drawn, seed):
    chains, first, source = drawn
    split = split_chains(*flat(chains), np.array(source), seed=seed, first=np.array(first))
    places: dict[tuple[int, ...], set[int]] = {}
    for chain, k, s in zip(chains, first, split.tolist(), strict=True):
        for example in examples_of(chain, k):
            places.setdefault(example, set()).add(s)
    assert all(len(found) == 1 for found in places.values())


@given(few_concept_chains())
@settings(max_examples=100, deadline=None)
def test_groups_are_the_connected_parts_and_no_larger(drawn):
    chains, first, _ = drawn
    sets = [examples_of(c, k) for c, k in zip(chains, first, strict=True)]
    wanted = list(range(len(chains)))
    changed = True
    while changed:
        changed = False
        for i in range(len(chains)):
            for j in range(len(chains)):
                if sets[i] & sets[j] and wanted[i] != wanted[j]:
                    wanted[i] = wanted[j] = min(wanted[i], wanted[j])
                    changed = True
    assert chain_groups(*flat(chains), np.array(first)).tolist() == wanted


@given(few_concept_chains(), st.integers(1, 3), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_no_training_learns_an_example_of_another_split(drawn, min_context, seed):
    chains, first, source = drawn
    split = split_chains(
        *flat(chains), np.array(source), seed=seed, first=np.array(first), min_context=min_context
    ).tolist()
    for train in (c for c, s in zip(chains, split, strict=True) if s == 0):
        learnt = examples_of(train, min_context)
        for chain, k, s in zip(chains, first, split, strict=True):
            assert s == 0 or learnt.isdisjoint(examples_of(chain, k))


def distinct_chains(n: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[i, n + i, *rng.integers(0, 50, rng.integers(1, 9)).tolist()] for i in range(n)]


def test_shares_are_70_15_15_within_each_source_and_length():
    chains = distinct_chains(2000)
    source = np.arange(2000) % 2
    split = split_chains(*flat(chains), source, seed=0)
    assert split.dtype == np.uint8
    np.testing.assert_allclose(np.bincount(split) / 2000, [0.70, 0.15, 0.15], atol=0.01)
    lengths = np.array([len(c) for c in chains])
    for s in (0, 1):
        for length in np.unique(lengths):
            mine = split[(source == s) & (lengths == length)]
            wanted = np.array([0.70, 0.15, 0.15]) * len(mine)
            assert np.abs(np.bincount(mine, minlength=3) - wanted).max() <= 1.5


def test_same_seed_same_split_other_seed_another():
    data = flat(distinct_chains(300))
    source = np.zeros(300, dtype=int)
    same = split_chains(*data, source, seed=4)
    np.testing.assert_array_equal(split_chains(*data, source, seed=4), same)
    assert (split_chains(*data, source, seed=5) != same).any()


def test_one_large_group_goes_to_train_and_is_reported():
    """As in ontologies where all chains begin at the root."""
    rooted = [[0, 1, 2, 10 + i] for i in range(90)] + [[0, 1, 3 + i] for i in range(10)]
    free = [[1000 + i, 2000 + i, 3] for i in range(100)]
    data = flat(rooted + free)
    source = np.repeat([0, 1], 100)
    split = split_chains(*data, source, seed=0)
    assert set(split[:90].tolist()) == {0}
    assert np.bincount(split[90:100], minlength=3).tolist() == [0, 5, 5]
    report = split_report(*data, source, split, ["go", "wordnet"])
    go, wordnet = report.sources
    assert (go.chains, go.groups, go.largest_group) == ((90, 5, 5), 11, 90)
    assert (wordnet.chains, wordnet.groups, wordnet.largest_group) == ((70, 15, 15), 100, 1)
    assert len(report.warnings) == 1
    assert "source go: val got 5 of 15 wanted and test got 5 of 15 wanted" in report.warnings[0]
    assert "the largest such group has 90 of its 100 chains" in report.warnings[0]
    assert "| go       |      90 |" in report.to_markdown()


def test_chains_that_share_only_two_concepts_are_free():
    """A context of 2 with another target is another example."""
    chains = [[0, 1, 2 + i] for i in range(20)]
    assert len(set(chain_groups(*flat(chains)).tolist())) == 20


def test_siblings_are_joined_on_request():
    """Chains that differ in the first concept only, as leaves of one parent do."""
    chains = [[100 + i, i // 4, 50, 51] for i in range(80)] + [[1, 2, 3], [2, 3, 50]]
    data = flat(chains)
    assert len(set(chain_groups(*data).tolist())) == 82
    wanted = [i - i % 4 for i in range(80)] + [80, 81]
    assert chain_groups(*data, join_siblings=True).tolist() == wanted
    source = np.zeros(82, dtype=int)
    split = split_chains(*data, source, seed=0, join_siblings=True)
    assert all(len(set(split[i : i + 4].tolist())) == 1 for i in range(0, 80, 4))
    assert np.bincount(split).tolist() == [58, 12, 12]
    report = split_report(*data, source, split, ["wordnet"], join_siblings=True)
    assert (report.sources[0].groups, report.sources[0].largest_group) == (22, 4)


def test_a_sibling_is_not_mistaken_for_a_beginning():
    """``[1:]`` of one chain equals the whole beginning of another."""
    assert chain_groups(*flat([[9, 1, 2, 3], [1, 2, 3, 4]]), join_siblings=True).tolist() == [0, 1]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_chains_still_get_a_split(n):
    split = split_chains(*flat(distinct_chains(n)), np.zeros(n, dtype=int), seed=0)
    assert len(split) == n
    assert 0 in split


def test_a_family_is_what_shares_an_example_or_differs_in_its_first_concept_only():
    chains = [
        [0, 5, 6, 7],  # 0: a sibling of 1
        [1, 5, 6, 7],
        [9, 8, 7, 6],  # 2: shares an example with 4
        [2, 5, 6, 7],  # 3: a sibling too, but of another split
        [9, 8, 7, 5],
        [3, 4, 8, 9],  # 5: alone
    ]
    values, offsets = flat(chains)
    data = make_dataset(
        n_chains=6, n_concepts=10, chain_values=values, chain_offsets=offsets,
        split=np.array([1, 1, 1, 0, 1, 1], np.uint8),
    )  # fmt: skip
    chain = data.examples("val").chain
    np.testing.assert_array_equal(families(data, "val"), np.array([0, 0, 2, -1, 2, 5])[chain])
    assert families(data, "train").tolist() == [3, 3]
    assert families(data, "test").tolist() == []


def test_families_of_the_whole_dataset_and_of_one_split_agree_where_none_straddles():
    data = make_dataset(n_chains=80, n_concepts=12, max_length=4)
    groups = chain_groups(
        data.chain_values, data.chain_offsets, data.chain_first, join_siblings=True
    )
    one_split = make_dataset(n_chains=80, n_concepts=12, max_length=4, split=np.ones(80, np.uint8))
    assert len(np.unique(groups)) < 80
    np.testing.assert_array_equal(
        families(one_split, "val"), groups[one_split.examples("val").chain]
    )
