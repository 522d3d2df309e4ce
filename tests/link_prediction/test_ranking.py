"""Ranks by hand: the filter, both masks, ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ocp_mamba.errors import NotFiniteError
from ocp_mamba.link_prediction.graph import read_graph
from ocp_mamba.link_prediction.queries import (
    NEVER_PARENT,
    WITH_CHILDREN,
    Queries,
    descendants,
    queries_of,
)
from ocp_mamba.link_prediction.ranking import METRICS, difference, figure, rank


@pytest.fixture
def queries(tmp_path: Path) -> Queries:
    """The head a (below it b, below that c) has the parents p (asked), q in train, r in test."""
    names = "abcpqrx"
    (tmp_path / "entity2text.txt").write_text("".join(f"{n}\t{n}, text\n" for n in names))
    (tmp_path / "train.tsv").write_text("b\t_hypernym\ta\nc\t_hypernym\tb\na\t_hypernym\tq\n")
    (tmp_path / "dev.tsv").write_text("a\t_hypernym\tp\n")
    (tmp_path / "test.tsv").write_text("a\t_hypernym\tr\n")
    return queries_of(read_graph(tmp_path), "dev")


def ranked(queries: Queries, **scores: float) -> tuple[float, float]:
    line = np.array([scores.get(name, 0.0) for name in "abcpqrx"], dtype=np.float32)
    found = rank(lambda heads: np.tile(line, (len(heads), 1)), queries)
    return float(found.masked[0]), float(found.unmasked[0])


def test_known_parents_never_compete_and_the_mask_takes_out_what_is_below(queries: Queries) -> None:
    assert ranked(queries, p=1, q=9, r=9) == (1, 1)
    assert ranked(queries, p=1, a=9, b=8, c=7) == (1, 4)
    assert ranked(queries, p=1, a=9, x=9) == (2, 3)
    assert ranked(queries, p=5, x=1, a=4) == (1, 1)


def test_equal_scores_count_half_so_that_a_constant_gains_nothing(queries: Queries) -> None:
    assert ranked(queries) == (1.5, 3.0)
    assert ranked(queries, p=1, x=1) == (1.5, 1.5)
    assert METRICS["hits_at_1"](np.array([1.0, 1.5]))[1] == 0


def test_scores_that_are_no_numbers_are_refused(queries: Queries) -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotFiniteError):
            ranked(queries, x=bad)
    assert ranked(queries, p=1, x=-float("inf")) == (1, 1)


def test_strata_and_circles(queries: Queries) -> None:
    assert queries.strata[WITH_CHILDREN].tolist() == [True]
    assert queries.strata[NEVER_PARENT].tolist() == [True]
    assert descendants(0, {0: [1], 1: [2], 2: [0]}) == {0, 1, 2}


def test_figures_over_seeds_and_strata() -> None:
    ranks = np.array([[1.0, 2.0, 4.0, 1.0], [1.0, 1.0, 11.0, 1.0]])
    assert figure(ranks, "hits_at_1").value == pytest.approx(0.625)
    assert figure(ranks, "mrr").value == pytest.approx(np.mean(1 / ranks))
    kept = np.array([False, True, True, False])
    assert figure(ranks, "hits_at_3", kept).value == pytest.approx(0.5)
    assert figure(ranks, "hits_at_10", kept).n == 2
    assert difference(ranks, ranks, "hits_at_1").value == pytest.approx(0)
    assert difference(ranks, np.full((1, 4), 9.0), "hits_at_1").value == pytest.approx(0.625)
