"""Ranks of the right answers among all entities, and what they come to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ocp_mamba.errors import NotFiniteError
from ocp_mamba.link_prediction.queries import Queries
from ocp_mamba.stats import Figure, mean_over_seeds

MASKED, UNMASKED = "masked", "unmasked"
MASKS = (MASKED, UNMASKED)
AT_ONCE = 128
"""Queries whose scores are in memory together: 128 rows of 41,000 are 20 MB."""

METRICS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "hits_at_1": lambda ranks: (ranks <= 1).astype(float),
    "hits_at_3": lambda ranks: (ranks <= 3).astype(float),
    "hits_at_10": lambda ranks: (ranks <= 10).astype(float),
    "mrr": lambda ranks: 1 / ranks,
}
"""For each metric, its value for each query from the query's rank."""

Scorer = Callable[[np.ndarray], np.ndarray]
"""Scores ``(B, E)`` of all entities as parents, from the numbers ``(B,)`` of the heads."""


@dataclass(frozen=True)
class Ranks:
    """Ranks of the right answers, float64 ``(Q,)``, 1 for the best; .5 where two are equal."""

    masked: np.ndarray
    unmasked: np.ndarray

    def of(self, mask: str) -> np.ndarray:
        """Return the ranks with the mask or without it, by the names in `MASKS`."""
        return self.masked if mask == MASKED else self.unmasked


def rank(scorer: Scorer, queries: Queries) -> Ranks:
    """Rank the right answers of all queries, filtered, with the mask and without it.

    Candidates with the score of the right answer count as half above it, so that a scorer gains
    nothing by giving the same score to all.

    Raises:
        NotFiniteError: a score is NaN or +inf; -inf is allowed, for what never competes.
    """
    masked, unmasked = np.empty(len(queries)), np.empty(len(queries))
    for start in range(0, len(queries), AT_ONCE):
        rows = range(start, min(start + AT_ONCE, len(queries)))
        scores = np.array(scorer(queries.heads[rows.start : rows.stop]), dtype=np.float32)
        if np.isnan(scores).any() or np.isposinf(scores).any():
            raise NotFiniteError("a score of a candidate is NaN or infinite")
        for row, line in zip(rows, scores, strict=True):
            line[queries.other_parents[row]] = -np.inf
            unmasked[row] = _rank_of(line, queries.parents[row])
            line[queries.below[row]] = -np.inf
            masked[row] = _rank_of(line, queries.parents[row])
    return Ranks(masked, unmasked)


def _rank_of(scores: np.ndarray, answer: int) -> float:
    """The rank of an answer: 1, those above it, and half of the others with its score."""
    right = scores[answer]
    return 1 + float((scores > right).sum()) + float((scores == right).sum() - 1) / 2


def figure(ranks: np.ndarray, metric: str, stratum: np.ndarray | None = None) -> Figure:
    """Return a metric with its 95% interval over queries, and over seeds where there are several.

    Args:
        ranks: ``(S, Q)``, a row for each seed.
        metric: of `METRICS`.
        stratum: bool ``(Q,)``; None for all queries.
    """
    kept = ranks if stratum is None else ranks[:, stratum]
    return mean_over_seeds(METRICS[metric](kept), np.arange(kept.shape[1]))


def difference(ours: np.ndarray, others: np.ndarray, metric: str) -> Figure:
    """Return the paired difference of a metric, ours minus the others', each query with itself.

    Args:
        ours: ranks ``(S, Q)``.
        others: ranks ``(S', Q)`` of the same queries; their mean over seeds is what is taken off.
        metric: of `METRICS`.
    """
    values = METRICS[metric](ours) - METRICS[metric](others).mean(axis=0, keepdims=True)
    return mean_over_seeds(values, np.arange(values.shape[1]))
