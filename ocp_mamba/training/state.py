"""What a training holds while it runs, and what it gives to its callers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.training.alarms import Alarm
from ocp_mamba.training.capture.step import Capture
from ocp_mamba.training.distributed import ALONE, World
from ocp_mamba.training.history import EpochProgress, EpochRecord
from ocp_mamba.training.loss import Objective
from ocp_mamba.training.negatives import NO_NEGATIVES, NegativePool


@dataclass(frozen=True, kw_only=True)
class EpochResult(EpochRecord):
    """What ``on_epoch`` receives: the record, the live model, and the alarms until now.

    ``learnt`` is for the ``.pt`` of the epoch: hashes of what the training learns from.
    """

    max_epochs: int
    model: NextVectorModel
    alarms: tuple[Alarm, ...] = ()
    learnt: dict[str, Any] | None = None


@dataclass
class TrainState:
    """Everything that a resumed run needs beside the dataset and the configs.

    Nothing in it depends on the number of processes, so that any number of them can resume it.
    ``progress`` is that of an epoch that has begun and not ended.
    """

    model: NextVectorModel
    optimizer: torch.optim.Optimizer
    precision: str
    negative_pool: NegativePool = NO_NEGATIVES
    history: list[EpochRecord] = field(default_factory=list)
    step: int = 0
    progress: EpochProgress | None = None
    world: World = ALONE
    capture: Capture = field(default_factory=Capture)

    def __post_init__(self) -> None:
        """Wrap the loss so that gradients are averaged over all processes."""
        self.objective = self.world.wrap_ddp(Objective(self.model))

    @property
    def best(self) -> EpochRecord | None:
        """Record of the best epoch so far, or None before the first epoch."""
        return next((r for r in reversed(self.history) if r.is_best), None)


@dataclass(frozen=True)
class FitResult:
    """Outcome of `fit`; the model holds the best epoch's weights.

    ``capture`` says whether the steps ran as CUDA graphs, and why not.
    """

    history: list[EpochRecord]
    best_epoch: int
    best_cosine: float
    stopped_early: bool
    alarms: tuple[Alarm, ...] = ()
    capture: str = ""

    @property
    def train_minutes(self) -> float:
        """Duration of all epochs with their validation, those before a resumption included."""
        return sum(r.seconds for r in self.history) / 60
