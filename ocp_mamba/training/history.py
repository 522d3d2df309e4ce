"""TODO."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Figures of one epoch; plain numbers, so it travels in a checkpoint.

    ``longest_chain`` is that of a curriculum's growing epochs, else None.
    """

    epoch: int
    losses: dict[str, float]
    lr: float
    seconds: float
    examples_per_second: float
    val: dict[str, float]
    improvement_trend: float | None
    is_best: bool
    is_last: bool
    longest_chain: int | None = None
