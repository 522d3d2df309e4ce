"""Vectors that are the same but for rounding."""

from __future__ import annotations

import numpy as np

SAME_DISTANCE = 1e-3
"""Unit rows this near to each other are one vector (cosine above 0.9999995). Rounding one vector
to float16 moves it by 3e-4, and an encoder's batches by 3e-5, so neither makes two of one."""

CHUNK = 8192
_RESTART_SHARE = 0.1


def norms_of(rows: np.ndarray) -> np.ndarray:
    """Euclidean norms of float32 rows (n, d), taken in float64."""
    squares = np.einsum("nd,nd->n", rows, rows, dtype=np.float64)
    return np.asarray(np.sqrt(squares))


def find_duplicates(unit: np.ndarray) -> tuple[np.ndarray, float]:
    """Find rows that are the same but for rounding.

    Rows are compared when their shadows on four fixed random directions are near, which those of
    rows within `SAME_DISTANCE` always are.

    Args:
        unit: float32 (n, d), unit rows.

    Returns:
        For each row the row that stands for it, int64 (n,): itself, or an earlier row no further
        than `SAME_DISTANCE`; and the largest distance between a row and the one that stands for it.
    """
    directions = np.random.default_rng(0).standard_normal((unit.shape[1], 4))
    directions /= np.linalg.norm(directions, axis=0)
    shadows = np.empty((len(unit), 4))
    for i in range(0, len(unit), CHUNK):
        shadows[i : i + CHUNK] = unit[i : i + CHUNK].astype(np.float64) @ directions
    root = np.arange(len(unit))
    alive = np.argsort(shadows[:, 0], kind="stable")
    step = 1
    while step < len(alive):
        one, other = alive[:-step], alive[step:]
        near = shadows[other, 0] - shadows[one, 0] <= SAME_DISTANCE
        if not near.any():
            break
        near &= (np.abs(shadows[other] - shadows[one]) <= SAME_DISTANCE).all(axis=1)
        one, other = one[near], other[near]
        same = _distances(unit, one, other) <= SAME_DISTANCE
        _unite(root, one[same], other[same])
        gone = root[alive] != alive
        if gone.mean() > _RESTART_SHARE:  # a collapsed bank would otherwise cost n² comparisons
            alive, step = alive[~gone], 0
        step += 1
    root = np.array([_find(root, i) for i in range(len(root))], dtype=np.int64)
    far = _distances(unit, np.arange(len(unit)), root) > SAME_DISTANCE
    root[far] = np.flatnonzero(far)
    return root, float(_distances(unit, np.arange(len(unit)), root).max(initial=0.0))


def _unite(root: np.ndarray, ones: np.ndarray, others: np.ndarray) -> None:
    """Join pairs; the smaller number stands for both."""
    for one, other in zip(ones.tolist(), others.tolist(), strict=True):
        low, high = sorted((_find(root, one), _find(root, other)))
        root[high] = low


def _find(root: np.ndarray, i: int) -> int:
    while root[i] != i:
        root[i] = root[root[i]]
        i = int(root[i])
    return i


def _distances(unit: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances between rows, float64 (n,), in chunks."""
    out = np.empty(len(one))
    for i in range(0, len(one), CHUNK):
        part = slice(i, i + CHUNK)
        out[part] = norms_of(unit[one[part]] - unit[other[part]])
    return out
