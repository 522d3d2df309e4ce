"""The record of one epoch, which checkpoints, alarms and reports share."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field


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
        time: when it ended, in Unix milliseconds; a tracker that is told of it twice logs it once.
        skipped_steps: steps of the training so far whose loss or gradient was not finite.
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
    time: int = 0
    skipped_steps: int = 0


@dataclass
class EpochProgress:
    """How far a pass over the train split has come, so that it can be gone on with.

    Attributes:
        epoch: its number, from 1.
        batches: that are behind it.
        examples: that were learnt from.
        sums: of each loss term and of ``grad_norm``, times the examples of its batch.
        skipped: steps that were skipped, because their loss or gradient was not finite.
        skipped_in_a_row: those since the last step that was not.
        lr: learning rate of its last step.
        seconds: that it took, in processes before this one.
    """

    epoch: int
    batches: int = 0
    examples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    skipped: int = 0
    skipped_in_a_row: int = 0
    lr: float = 0.0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        """Start the clock of this process."""
        self._started = time.perf_counter() - self.seconds

    def add(self, values: Mapping[str, float], examples: int) -> None:
        """Count a batch; one whose numbers are not all finite counts as skipped."""
        self.batches += 1
        if not is_finite(values):
            self.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.skipped_in_a_row = 0
        self.examples += examples
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value * examples

    def so_far(self) -> float:
        """Return and keep the seconds of the epoch, those of earlier processes included."""
        self.seconds = time.perf_counter() - self._started
        return self.seconds


def is_finite(values: Mapping[str, float]) -> bool:
    """Return whether all numbers are finite."""
    return all(math.isfinite(value) for value in values.values())
