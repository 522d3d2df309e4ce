"""The record of one epoch, which checkpoints, alarms and reports share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """Metrics of one epoch, as plain values that a checkpoint can hold.

    Attributes:
        epoch: its number, from 1.
        losses: mean of each loss term over the epoch's examples, and of ``grad_norm``.
        lr: learning rate of its last step.
        seconds: duration of training and validation.
        examples_per_second: examples trained on, over the duration of training alone.
        val: metrics of the validation.
        improvement_trend: least-squares slope of the validation cosine over all epochs so far, per
            epoch; None before ``trend_epochs`` epochs.
        is_best: whether its validation cosine is above that of every epoch before.
        is_last: whether training ends with it.
        longest_chain: limit of the chain length while a curriculum grows, else None.
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
