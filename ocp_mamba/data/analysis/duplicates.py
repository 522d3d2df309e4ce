"""Duplicate vectors: rows that differ by rounding only."""

from __future__ import annotations

import numpy as np

from ocp_mamba.data.components import smallest_of_component

SAME_DISTANCE = 1e-3
"""Unit rows at most this far apart are one vector (cosine above 0.9999995). Rounding a vector to
float16 moves it by 3e-4, and an encoder's batches by 3e-5, so neither makes two vectors of one."""

CHUNK = 8192

_RESTART_SHARE = 0.1
"""Share of the compared rows that were found to be duplicates, above which they are left out."""


def norms_of(rows: np.ndarray) -> np.ndarray:
    """Euclidean norms of float32 rows (n, d), computed in float64."""
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def find_duplicates(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Find rows that differ by rounding only.

    Rows are projected on four fixed random directions. Two rows within `SAME_DISTANCE` have
    projections within `SAME_DISTANCE`, so only rows with such projections are compared.

    Args:
        rows: float32 (n, d), unit rows.

    Returns:
        For each row its representative, int64 (n,): itself, or an earlier row at most
        `SAME_DISTANCE` away; and the largest distance between a row and its representative.
    """
    n = len(rows)
    projections = _projections(rows)
    representative = np.arange(n)
    compared = np.argsort(projections[:, 0], kind="stable")
    step = 1
    while step < len(compared):
        one, other = compared[:-step], compared[step:]
        near = projections[other, 0] - projections[one, 0] <= SAME_DISTANCE
        if not near.any():
            break
        near &= (np.abs(projections[other] - projections[one]) <= SAME_DISTANCE).all(axis=1)
        one, other = one[near], other[near]
        is_duplicate = _distances(rows, one, other) <= SAME_DISTANCE
        representative = _merge(representative, one[is_duplicate], other[is_duplicate])
        represented = representative[compared] != compared
        if represented.mean() > _RESTART_SHARE:  # a collapsed bank would cost n² comparisons
            compared, step = compared[~represented], 0
        step += 1
    every = np.arange(n)
    too_far = _distances(rows, every, representative) > SAME_DISTANCE
    representative[too_far] = every[too_far]
    return representative, float(_distances(rows, every, representative).max(initial=0.0))


def _projections(rows: np.ndarray) -> np.ndarray:
    """Inner products of rows with four fixed random unit directions, float64 (n, 4)."""
    directions = np.random.default_rng(0).standard_normal((rows.shape[1], 4))
    directions /= np.linalg.norm(directions, axis=0)
    out = np.empty((len(rows), 4))
    for i in range(0, len(rows), CHUNK):
        out[i : i + CHUNK] = rows[i : i + CHUNK].astype(np.float64) @ directions
    return out


def _merge(representative: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The representatives once pairs of duplicates are joined: the smallest row of each group."""
    if len(one) == 0:
        return representative
    known = np.flatnonzero(representative != np.arange(len(representative)))
    return smallest_of_component(
        len(representative),
        np.concatenate([known, one]),
        np.concatenate([representative[known], other]),
    )


def _distances(rows: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances between pairs of rows, float64 (n,), in chunks."""
    out = np.empty(len(one))
    for i in range(0, len(one), CHUNK):
        part = slice(i, i + CHUNK)
        out[part] = norms_of(rows[one[part]] - rows[other[part]])
    return out
