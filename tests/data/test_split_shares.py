"""Which split a group goes to, by the rule of Sainte-Laguë, and the report word for word."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.split import (
    FRACTIONS,
    SourceSplit,
    SplitReport,
    chain_groups,
    families,
    split_chains,
    split_report,
)


def flat(chains: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    values = np.array([v for c in chains for v in c], dtype=np.int32)
    return values, np.cumsum([0] + [len(c) for c in chains], dtype=np.int64)


def sainte_lague(n: int) -> list[int]:
    """Seats of n that the three shares win by the highest averages, no more than their ceiling."""
    seats = [0, 0, 0]
    limits = [ceil(share * n) for share in FRACTIONS]
    for _ in range(n):
        averages = [
            share / (2 * have + 1) if have < limit else -1.0
            for share, have, limit in zip(FRACTIONS, seats, limits, strict=True)
        ]
        seats[int(np.argmax(averages))] += 1
    return seats


@pytest.mark.parametrize("size", [1, 2, 3])
def test_groups_of_one_size_are_dealt_out_by_the_highest_averages(size: int) -> None:
    """Siblings: ``size`` chains that differ in their first concept only."""
    for n in (1, 2, 3, 4, 5, 7, 10, 13, 20, 27, 33, 40):
        chains = [[1000 * i + j, 9000 + i, 9500 + i] for i in range(n) for j in range(size)]
        split = split_chains(*flat(chains), np.zeros(n * size), seed=n, join_siblings=True)
        got = np.bincount(split[::size], minlength=3)
        if size == 1:
            assert got.tolist() == sainte_lague(n), n
        assert np.abs(got - np.array(FRACTIONS) * n).max() < 1.5, n
        assert (split.reshape(n, size) == split[::size, None]).all()


def test_each_stratum_has_its_share_though_groups_straddle_strata() -> None:
    """Groups of a long and a short chain: both lengths are dealt out alike."""
    chains: list[list[int]] = []
    for i in range(40):
        chains += [[i, 100 + i, 200 + i], [i, 100 + i, 200 + i, 300 + i]]
    split = split_chains(*flat(chains), np.zeros(80), seed=0)
    assert (split[::2] == split[1::2]).all()
    assert np.bincount(split[::2]).tolist() == sainte_lague(40)


def test_sources_have_their_own_shares() -> None:
    chains = [[i, 1000 + i, 2000 + i] for i in range(60)]
    source = np.repeat([0, 1, 2], [20, 30, 10])
    split = split_chains(*flat(chains), source, seed=1)
    for s, n in enumerate((20, 30, 10)):
        train, *others = np.bincount(split[source == s], minlength=3).tolist()
        wanted, *rest = sainte_lague(n)
        assert (train, sorted(others)) == (wanted, sorted(rest))


def test_of_two_splits_with_equal_claims_the_smaller_one_gets_the_group() -> None:
    """Each source has three chains: two for train, and one for either val or test."""
    chains = [[i, 100 + i, 200 + i] for i in range(30)]
    split = split_chains(*flat(chains), np.repeat(np.arange(10), 3), seed=0)
    assert np.bincount(split).tolist() == [20, 5, 5]


def test_a_group_goes_where_it_fits_and_else_to_train() -> None:
    """Of 20 chains val may take 3: a group of 4 is too large for val and test, one of 3 is not."""
    for size, wanted in ((3, {0, 1, 2}), (4, {0})):
        groups = 20 // size
        chains = [[50 * g + i, 2000 + g, 3000 + g] for g in range(groups) for i in range(size)]
        chains += [[5000 + i, 6000 + i, 7000 + i] for i in range(20 - len(chains))]
        split = split_chains(*flat(chains), np.zeros(20), seed=0, join_siblings=True)
        assert set(split[: groups * size].tolist()) == wanted
    everything = [[1, 2, 3 + i] for i in range(10)]
    one = split_chains(*flat([[1, 2, 3]] * 10), np.zeros(10), seed=0)
    assert set(one.tolist()) == {0}
    assert len(set(split_chains(*flat(everything), np.zeros(10), seed=0).tolist())) == 3


def test_room_is_counted_for_each_source_of_a_group() -> None:
    """A group of both sources fits nowhere where either source has no room left."""
    both = [[i, 500, 501] for i in range(6)]
    free = [[700 + i, 800 + i, 900 + i] for i in range(14)]
    source = np.array([0] * 3 + [1] * 3 + [1] * 14)
    split = split_chains(*flat(both + free), source, seed=0, join_siblings=True)
    assert set(split[:6].tolist()) == {0}, "source 0 may give val one chain of its three"


@given(st.lists(st.integers(1, 6), min_size=1, max_size=25), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_no_split_but_train_exceeds_its_share(sizes: list[int], seed: int) -> None:
    chains = [[100 * g + i, 9000 + g, 9500 + g] for g, n in enumerate(sizes) for i in range(n)]
    split = split_chains(*flat(chains), np.zeros(len(chains)), seed=seed, join_siblings=True)
    counts = np.bincount(split, minlength=3)
    assert counts[1] <= ceil(0.15 * len(chains))
    assert counts[2] <= ceil(0.15 * len(chains))


def test_min_context_joins_what_training_learns_from_both() -> None:
    """The second chain begins with the first one's example; its own targets come later."""
    data = flat([[0, 1, 2], [0, 1, 2, 3, 4], [9, 1, 2]])
    first = np.array([2, 4, 2])
    assert chain_groups(*data, first).tolist() == [0, 1, 2]
    assert chain_groups(*data, first, min_context=1).tolist() == [0, 0, 2]
    assert chain_groups(*data, first, min_context=2).tolist() == [0, 0, 2]
    assert chain_groups(*data, first, min_context=3).tolist() == [0, 1, 2]
    assert chain_groups(*data, first, min_context=9).tolist() == [0, 1, 2]
    split = split_chains(*data, np.zeros(3), seed=0, first=first, min_context=2)
    assert split[0] == split[1]
    report = split_report(*data, np.zeros(3), split, ["x"], first=first, min_context=2)
    assert (report.sources[0].groups, report.sources[0].largest_group) == (2, 2)
    alone = split_report(*data, np.zeros(3), split, ["x"], first=first)
    assert (alone.sources[0].groups, alone.sources[0].largest_group) == (3, 1)


def test_what_is_learnt_of_two_chains_and_evaluated_of_none_joins_nothing() -> None:
    data = flat([[0, 1, 2, 3, 4], [0, 1, 2, 5, 6]])
    for min_context in (None, 1, 2, 3):
        groups = chain_groups(*data, np.array([4, 4]), min_context=min_context)
        assert groups.tolist() == [0, 1], min_context


def test_siblings_are_apart_unless_they_are_joined() -> None:
    chains = [[1000 * i + j, 9000 + i, 9500 + i] for i in range(40) for j in range(2)]
    split = split_chains(*flat(chains), np.zeros(80), seed=0)
    assert (split[::2] != split[1::2]).any()


def test_a_family_shares_what_is_evaluated_by_the_rule_of_its_dataset() -> None:
    values, offsets = flat([[0, 1, 2, 3], [0, 1, 2, 4]])
    for first, wanted in ((3, [0, 1]), (2, [0, 0, 0, 0])):
        data = make_dataset(
            n_chains=2, n_concepts=5, chain_values=values, chain_offsets=offsets,
            split=np.ones(2, np.uint8), chain_first=np.full(2, first, np.uint8),
        )  # fmt: skip
        found = families(data, "val")
        assert found.tolist() == wanted
        assert found.dtype == families(data, "test").dtype == np.int64


def test_without_first_targets_contexts_have_two_concepts() -> None:
    data = flat([[0, 1, 2], [0, 1, 3], [0, 1, 2, 4]])
    assert chain_groups(*data).tolist() == [0, 1, 0]
    assert chain_groups(*data, np.full(3, 1)).tolist() == [0, 0, 0]
    assert chain_groups(*data).dtype == np.int64


def test_every_source_is_reported_also_one_without_chains() -> None:
    data = flat([[0, 1, 2], [3, 4, 5]])
    report = split_report(*data, np.array([1, 1]), np.array([0, 2], np.uint8), ["a", "b"])
    assert report == SplitReport(
        (SourceSplit("a", (0, 0, 0), 0, 0), SourceSplit("b", (1, 0, 1), 2, 1))
    )
    assert isinstance(report.sources[1].largest_group, int)


def test_the_report_word_for_word() -> None:
    fair = SourceSplit("wordnet", (1400, 300, 300), 1500, 12)
    skewed = SourceSplit("go", (93, 7, 0), 3, 93)
    report = SplitReport((fair, skewed))
    assert report.to_markdown() == (
        "| source   |   train |   val |   test |   groups |   largest group |\n"
        "|----------|---------|-------|--------|----------|-----------------|\n"
        "| wordnet  |   1,400 |   300 |    300 |    1,500 |              12 |\n"
        "| go       |      93 |     7 |      0 |        3 |              93 |"
    )
    assert report.warnings == [
        "source go: val got 7 of 15 wanted and test got 0 of 15 wanted; chains that share "
        "examples stay together, and the largest such group has 93 of its 100 chains; metrics on "
        "so few chains say little about this source"
    ]


def test_half_of_the_share_is_enough_without_a_warning() -> None:
    def warned(*chains: int) -> list[str]:
        return SplitReport((SourceSplit("x", chains, 1, 1),)).warnings

    assert warned(34, 3, 3) == [], "15% of 40 are 6, and 3 are half of them"
    assert len(warned(35, 2, 3)) == 1
    assert warned(0, 0, 0) == []
    assert "val got 1 of 7 wanted;" in warned(35, 1, 7)[0]
