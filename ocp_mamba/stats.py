"""Means with bootstrap intervals over groups and over seeds, slopes and percentiles."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
TAILS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
RESAMPLES = 1000
T_DRAWS = 500
"""Draws of Student's t for several seeds, each with both signs."""


@dataclass(frozen=True)
class Figure:
    """A mean over ``n`` examples with its 95% interval.

    All three numbers are None when n is 0. The interval alone is None when all examples are of one
    group, for then nothing is known of how groups differ.
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


def other_of_each(values: np.ndarray, seed: int) -> np.ndarray | None:
    """Draw for each entry the value of another one, never its own value.

    Args:
        values: integers ``(n,)``.
        seed: of the draw, which is uniform over the entries with another value.

    Returns:
        ``(n,)``; None where all values are the same, so that there is no other.
    """
    ordered = np.sort(values)
    first = np.searchsorted(ordered, values, side="left")
    same = np.searchsorted(ordered, values, side="right") - first
    if (same == len(values)).any():
        return None
    drawn = np.random.default_rng(seed).integers(0, len(values) - same)
    others: np.ndarray = ordered[drawn + np.where(drawn >= first, same, 0)]
    return others


def bootstrap_mean(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> Figure:
    """Mean of ``values`` with a percentile interval from resampling whole groups.

    Examples of one group are not independent, so groups are drawn, not examples.
    Source: Davison and Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8.

    Args:
        values: ``(n,)`` one number for each example.
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
    """Add to each draw the error of the seeds, see `mean_over_seeds`."""
    n_seeds = len(each_seed)
    spread = each_seed.std(ddof=1) / math.sqrt(n_seeds)
    t = np.random.default_rng(seed).standard_t(n_seeds - 1, size=(T_DRAWS, 1))
    changed: np.ndarray = drawn + spread * np.concatenate([t, -t])
    return changed


@functools.lru_cache(maxsize=4)
def _resamples(groups: int, seed: int) -> np.ndarray:
    """How often each group is drawn, ``(RESAMPLES, groups)``; many figures need the same draws."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(np.float64)


def slope(values: Sequence[float]) -> float | None:
    """Least-squares slope of equally spaced values, per step; None for fewer than two."""
    if len(values) < 2:
        return None
    return float(np.polyfit(np.arange(len(values)), np.asarray(values, dtype=np.float64), 1)[0])


def percentile_ms(seconds: Sequence[float], percent: float) -> float:
    """Percentile of durations in seconds, in milliseconds."""
    if not seconds:
        return math.nan
    return float(np.percentile(np.asarray(seconds), percent)) * 1e3
