"""What a run logs as metrics: their names, how one is written down, and what logging costs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from ocp_mamba.training.history import EpochRecord

NOT_RUN = "not-run"

Numbers = Mapping[str, float | None]


def metric_entry(
    key: str, value: float, timestamp: int, step: int, dataset: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return a metric as JSON; ``dataset`` is (name, digest) of the split it was computed on."""
    return {"key": key, "value": value, "time": timestamp, "step": step, "dataset": dataset}


def entries(
    numbers: Numbers,
    step: int,
    computed_on: Callable[[str], tuple[str, str] | None],
    time: int = 0,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Return the finite numbers as metrics, and a tag for each of the others.

    Args:
        numbers: the metrics by name; None for one that was not computed.
        step: of all of them.
        computed_on: gives name and digest of the data that a metric was computed on, or None.
        time: Unix milliseconds; 0 for now.
    """
    metrics: list[dict[str, Any]] = []
    notes: dict[str, str] = {}
    at = time or now()
    for name, value in numbers.items():
        if value is None:
            notes[f"metric.{name}"] = NOT_RUN
        elif not math.isfinite(value):
            notes[f"metric.{name}"] = f"not finite ({value}) at step {step}"
        else:
            metrics.append(metric_entry(name, float(value), at, step, computed_on(name)))
    return metrics, notes


def epoch_numbers(record: EpochRecord) -> dict[str, float]:
    """Return an epoch's numbers by the names of their metrics; a trend of None is absent."""
    trend, longest = record.improvement_trend, record.longest_chain
    return {
        **{f"val_{name}": value for name, value in record.val.items()},
        **{_train_metric(name): value for name, value in record.losses.items()},
        **({} if trend is None else {"improvement_trend": trend}),
        **({} if longest is None else {"curriculum_longest_chain": float(longest)}),
        **({} if not record.skipped_steps else {"skipped_steps": float(record.skipped_steps)}),
        "epoch_seconds": record.seconds,
        "learning_rate": record.lr,
        "examples_per_second": record.examples_per_second,
    }


def _train_metric(name: str) -> str:
    """The name of a training metric; that of a loss term begins with ``train_loss_``."""
    return "train_grad_norm" if name == "grad_norm" else f"train_loss_{name}"


def split_of_metric(name: str) -> str | None:
    """Return the split that an epoch's metric was computed on, or None."""
    if name.startswith(("val_", "improvement_trend")):
        return "val"
    return "train" if name.startswith("train_") else None


class Cost:
    """Seconds spent inside its outermost ``with`` blocks, in all and in epochs."""

    def __init__(self) -> None:
        """Begin with nothing spent."""
        self.seconds = 0.0
        self.in_epochs = 0.0
        self.training = 0.0
        self._depth = 0

    def numbers(self, cpu_seconds: float) -> dict[str, float]:
        """Return what tracking has cost so far, as metrics.

        ``tracking_seconds`` is the time that the job spent in the blocks. ``tracking_share`` is
        that of the epochs' logging, as a share of the time from the run's start to its last epoch's
        end. ``tracking_cpu_seconds`` is processor time of the thread that sends.
        """
        cost = {"tracking_seconds": self.seconds, "tracking_cpu_seconds": cpu_seconds}
        return cost | ({"tracking_share": self.in_epochs / self.training} if self.training else {})

    def __enter__(self) -> None:
        """Begin to count, unless an outer block does."""
        if self._depth == 0:
            self._started = time.perf_counter()
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        """Count the seconds of an outermost block."""
        self._depth -= 1
        if self._depth == 0:
            self.seconds += time.perf_counter() - self._started


def now() -> int:
    """Return the time in Unix milliseconds."""
    return int(time.time() * 1000)
