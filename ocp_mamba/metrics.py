"""Figures as pure functions of tensors; their definitions stand in ``docs/metrics.md``."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.directions import cosine_to

METRICS_VERSION = "3"
"""Changes when a definition changes: figures of two versions are not comparable."""

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
RESAMPLES = 1000
T_DRAWS = 500
"""Draws of Student's t, each with both signs, where there are several seeds: its tails are long."""
TIE = 1e-6
"""Two cosines nearer than this are one: float32 rounds a sum of 768 products by about as much."""
RANK_ROWS, RANK_SCORES = 1024, 1 << 24
"""Most predictions, and most cosines, that ranks are counted over at once."""


@dataclass(frozen=True)
class Figure:
    """A mean over ``n`` examples with its 95% interval.

    All three numbers are None when n is 0. The interval alone is None when the examples are of one
    group: how far another group would be from it cannot be known.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int

    def __str__(self) -> str:
        """Return ``0.823 [0.815, 0.831]``, or ``not run (n = 0)``."""
        return self.text()

    def text(self, form: str = ".3f") -> str:
        """Return the value and its interval in a number format, as ``+.4f``."""
        if self.value is None:
            return "not run (n = 0)"
        return f"{self.value:{form}} {self.interval(form)}"

    def interval(self, form: str = ".3f") -> str:
        """Return ``[0.815, 0.831]``, or ``[no interval]``."""
        if self.low is None or self.high is None:
            return "[no interval]"
        return f"[{self.low:{form}}, {self.high:{form}}]"


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> Figure:
    """Mean of ``values`` with a percentile interval from resampling whole groups.

    Examples of one group are not independent, so groups are drawn, not examples.
    Source: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.

    Args:
        values: ``(n,)`` one number an example.
        groups: ``(n,)`` integers, the family of each example (see ``data.split.families``).
        seed: seed of the resampling.
    """
    return mean_over_seeds(values[None], groups, seed)


def mean_over_seeds(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> Figure:
    """Mean of ``values`` with an interval that covers other groups and other seeds of training.

    The interval holds the middle 95% of ``m + t * s / sqrt(S)``: m, the mean of a resample of whole
    groups; s, the standard deviation of the S seeds' means; t, a draw of Student's t with S - 1
    degrees of freedom, independent of m; clipped to the range of the values. With one seed it
    covers other groups alone.
    Source of the sum: Behrens and Fisher's, of two independent errors of unknown size.

    Args:
        values: ``(S, n)``, a row for each seed over the same examples.
        groups: ``(n,)`` integers, as in `bootstrap_mean`.
        seed: seed of the resampling.
    """
    n_seeds, n = values.shape
    if n == 0:
        return Figure(None, None, None, 0)
    _, index = np.unique(groups, return_inverse=True)
    sums = np.bincount(index, weights=values.mean(axis=0, dtype=np.float64))
    counts = np.bincount(index).astype(np.float64)
    mean = float(sums.sum() / counts.sum())
    if len(sums) == 1:
        return Figure(mean, None, None, n)
    drawn = _resamples(len(sums), seed)
    means = (drawn @ sums) / (drawn @ counts)
    if n_seeds > 1:
        means = _of_other_seeds(means, values.mean(axis=1, dtype=np.float64), seed)
        means = means.clip(values.min(), values.max())  # no mean lies beyond all examples
    low, high = np.quantile(means, TAILS)
    return Figure(mean, float(low), float(high), n)


def ratio_over_seeds(
    above: np.ndarray, below: np.ndarray, groups: np.ndarray, seed: int = 0
) -> Figure:
    """Mean of ``above`` over mean of ``below``, with an interval as in `mean_over_seeds`.

    Both means are of the same resampled groups, so what makes a group hard for both cancels.

    Args:
        above: ``(S, n)``, a row for each seed over the same examples.
        below: ``(S, n)``, of the same seeds and examples.
        groups: ``(n,)`` integers, as in `bootstrap_mean`.
        seed: seed of the resampling.

    Returns:
        The ratio; no value where the mean of ``below`` is not above 0, and no interval where that
        of a resample is not, or where all examples are of one group.
    """
    n_seeds, n = above.shape
    if n == 0 or below.mean() <= 0:
        return Figure(None, None, None, n)
    ratio = float(above.mean(dtype=np.float64) / below.mean(dtype=np.float64))
    _, index = np.unique(groups, return_inverse=True)
    sums = [np.bincount(index, weights=v.mean(axis=0, dtype=np.float64)) for v in (above, below)]
    drawn = _resamples(len(sums[0]), seed)
    over, under = drawn @ sums[0], drawn @ sums[1]
    seeds_below = below.mean(axis=1, dtype=np.float64)
    if len(sums[0]) == 1 or (under <= 0).any() or (seeds_below <= 0).any():
        return Figure(ratio, None, None, n)
    ratios = over / under
    if n_seeds > 1:
        ratios = _of_other_seeds(ratios, above.mean(axis=1, dtype=np.float64) / seeds_below, seed)
    low, high = np.quantile(ratios, TAILS)
    return Figure(ratio, float(low), float(high), n)


def _of_other_seeds(drawn: np.ndarray, each_seed: np.ndarray, seed: int) -> np.ndarray:
    """Add to each draw what another set of as many seeds would change, see `mean_over_seeds`."""
    n_seeds = len(each_seed)
    spread = each_seed.std(ddof=1) / math.sqrt(n_seeds)
    t = np.random.default_rng(seed).standard_t(n_seeds - 1, size=(T_DRAWS, 1))
    changed: np.ndarray = drawn + spread * np.concatenate([t, -t])
    return changed


@functools.lru_cache(maxsize=4)
def _resamples(groups: int, seed: int) -> np.ndarray:
    """How often each group is drawn, ``(RESAMPLES, groups)``; many figures ask for the same."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(np.float64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of each pair of rows: ``(..., D)`` and ``(..., D)`` to ``(...)``; range -1..1."""
    return F.cosine_similarity(a, b, dim=-1)


def cosine_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """1 - cosine of rows ``(..., M, D)`` and their targets, ``(M, D)``: ``(..., M)`` in 0..2."""
    return 1 - cosine_to(targets, predictions)


def info_nce(
    predictions: Tensor,
    targets: Tensor,
    log_sum: Tensor,
    temperature: float,
    hard: Tensor | None = None,
    counted: Tensor | None = None,
) -> Tensor:
    """Contrastive loss of unit predictions against candidates, the targets among them.

    Candidates are distinct: a target that occurs twice is one of them, so that no example has its
    own target among its negatives. Hard negatives join the denominator of their own example alone.
    A target mixed of two concepts has the mean loss of either, by its weights: the loss is linear
    in the target. Source: van den Oord et al., "Representation Learning with Contrastive
    Predictive Coding", 2018, equation 4.

    Args:
        predictions: ``(..., M, D)`` unit rows.
        targets: ``(M, D)`` unit rows of candidates, or mixtures of two.
        log_sum: ``(..., M)``, logarithm of the sum of ``exp(cosine / temperature)`` over the
            candidates.
        temperature: divisor of the cosines.
        hard: ``(M, K, D)`` unit rows, each example's hard negatives.
        counted: bool ``(M, K)``, which of them are no candidates, and so not in the sum yet; the
            others are not read.

    Returns:
        ``(..., M)``, in nats; the logarithm of the number of candidates is chance.
    """
    if hard is not None and counted is not None:
        near = torch.einsum("...md,mkd->...mk", predictions, hard) / temperature
        near = near.masked_fill(~counted, -math.inf).to(log_sum.dtype)
        log_sum = torch.cat([log_sum[..., None], near], dim=-1).logsumexp(dim=-1)
    return log_sum - (predictions * targets).sum(dim=-1) / temperature


def slope(values: Sequence[float]) -> float | None:
    """Least-squares slope of equally spaced values, per step; None for fewer than two."""
    if len(values) < 2:
        return None
    return float(np.polyfit(np.arange(len(values)), np.asarray(values, dtype=np.float64), 1)[0])


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
    ordered = np.sort(target_ids)
    first = np.searchsorted(ordered, target_ids, side="left")
    same = np.searchsorted(ordered, target_ids, side="right") - first
    if (same == len(target_ids)).any():
        return None
    drawn = np.random.default_rng(seed).integers(0, len(target_ids) - same)
    others: np.ndarray = ordered[drawn + np.where(drawn >= first, same, 0)]
    return others


def variance(rows: Tensor) -> float:
    """Variance of rows ``(n, D)`` summed over D; of unit rows 1 - |mean|^2, in 0..1.

    0 says that all rows are one, 1 that they cancel out.
    """
    return float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())


def chance_precision_at(k: int, pool_size: int) -> float:
    """Precision at k of a uniformly random ranking of the pool."""
    return min(1.0, k / pool_size)


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Percentile of durations in seconds, in milliseconds."""
    if not seconds:
        return math.nan
    return float(np.percentile(np.asarray(seconds), percent)) * 1e3
