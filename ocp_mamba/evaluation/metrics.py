"""Metrics as pure functions of tensors; ``docs/metrics.md`` has their definitions."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.stats import other_of_each

METRICS_VERSION = "4"
"""Changes when a definition changes: metrics of two versions are not comparable."""

TIE = 1e-6
"""Cosines nearer than this count as equal: float32 rounds a sum of 768 products by as much."""
RANK_ROWS, RANK_SCORES = 1024, 1 << 24
"""Most predictions, and most cosines, that ranks are counted over at once."""


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair of rows: ``(..., D)`` and ``(..., D)`` to ``(...)``; range -1..1."""
    return F.cosine_similarity(a, b, dim=-1)


def precision_at(found: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Whether each target ``(n,)`` is among the first k found ``(n, >= k)``: bool ``(n,)``."""
    return (found[:, :k] == targets[:, None]).any(axis=1)


def rank_in_bank(predictions: Tensor, target_ids: Tensor, bank: Tensor) -> Tensor:
    """Place of each target among all bank rows by inner product: int64 ``(n,)``, 1 is best.

    A row within `TIE` of the target's own score stands before it: ties count against the predictor.

    Args:
        predictions: ``(n, D)`` unit rows.
        target_ids: int64 ``(n,)`` bank rows.
        bank: ``(n_concepts, D)`` unit rows.
    """
    ranks = []
    n = max(1, min(RANK_ROWS, RANK_SCORES // len(bank)))
    for rows, ids in zip(predictions.split(n), target_ids.split(n), strict=True):
        scores = rows @ bank.T
        own = scores.gather(1, ids[:, None])
        ranks.append((scores >= own - TIE).sum(dim=1))
    return torch.cat(ranks)


def margin(predictions: Tensor, targets: Tensor, last: Tensor) -> Tensor:
    """cos(p, t) - cos(p, l) of each row ``(n, D)``: ``(n,)``; below 0 p is nearer to its input."""
    return cosine(predictions, targets) - cosine(predictions, last)


def other_targets(target_ids: np.ndarray, seed: int) -> np.ndarray | None:
    """Draw for each example the target of another one, never the same concept.

    Args:
        target_ids: integers ``(n,)``, bank rows.
        seed: of the draw, which is uniform over the examples with another target.

    Returns:
        Bank rows ``(n,)``; None where all examples have one target, so that there is no other.
    """
    return other_of_each(target_ids, seed)


def variance(rows: Tensor) -> float:
    """Variance of rows ``(n, D)`` summed over D; of unit rows 1 - |mean|^2, in 0..1.

    It is 0 where all rows are the same, 1 where they cancel out.
    """
    return float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())


def chance_precision_at(k: int, pool_size: int) -> float:
    """Precision at k of a uniformly random ranking of the pool."""
    return min(1.0, k / pool_size)
