"""Where the time of a tracked training epoch goes: all that is not the steps adds little."""

from __future__ import annotations

import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.frame import ROOT, Cell, Goal, Result, Table
from ocp_mamba.config import MODEL_SIZES, TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training import trainer

DATA = ROOT / "ocp_training_9k.npz"
SHARE_GOAL = 0.15
EPOCHS = 3


class Clock:
    """Seconds by part; a part within another counts for itself alone."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._inner: list[float] = []

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call, with its time counted as the part's."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            started = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                whole = time.perf_counter() - started
                self.seconds[part] += whole - self._inner.pop()
                if self._inner:
                    self._inner[-1] += whole

        return run


def main(quick: bool) -> Result:
    """Train epochs of the default dataset in a tracked run, and divide up their mean time."""
    dataset, epochs = Dataset.load(DATA), 1 if quick else EPOCHS
    config = TrainConfig(max_epochs=epochs, compile="on" if _compiles() else "off")
    size = MODEL_SIZES["tiny"] if quick else MODEL_SIZES["small"]
    torch.manual_seed(0)
    model = build_model(size)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        total = _train(model, dataset, config, clock, Path(folder))
    steps = clock.seconds["steps"]
    clock.seconds["gathering, bucketing, bookkeeping"] = total - sum(clock.seconds.values())
    rows: list[dict[str, Cell]] = [
        {"part": part, "seconds": seconds / epochs, "% of the steps": 100 * seconds / steps}
        for part, seconds in clock.seconds.most_common()
    ]
    added = (total - steps) / steps
    goal = Goal(
        f"all but the steps adds less than {SHARE_GOAL:.0%}", f"{added:.1%}", added < SHARE_GOAL
    )
    size_name = "tiny" if quick else "small"
    padding = _padding(dataset, config)
    note = (
        f"Mean of {epochs} epochs, model size {size_name}, default settings, MLflow on SQLite in "
        f"an empty folder; of a batch's positions {padding:.1%} are padding."
    )
    return Result([Table("One tracked epoch of the default dataset", rows, note)], [goal])


def _train(
    model: OCPMambaLVM, dataset: Dataset, config: TrainConfig, clock: Clock, folder: Path
) -> float:
    """Train as the main job does; returns the seconds from the first step to the last record."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    from ocp_mamba.tracking.session import config_params, track
    from ocp_mamba.training.checkpointing import StateFiles

    validate = validator(dataset, BankIndex(dataset.bank))
    params = config_params(model=model.config, train=config)
    with (
        track(dataset, DATA, output_dir=folder, params=params) as run,
        patch.object(trainer, "train_step", clock.timed("steps", trainer.train_step)),
        patch.object(StateFiles, "write", clock.timed("checkpoints", StateFiles.write)),
    ):
        started = time.perf_counter()
        trainer.fit(
            model,
            dataset,
            config,
            validate=clock.timed("evaluation and retrieval", validate),
            output=folder / "model.pt",
            on_epoch=clock.timed("tracking", run.on_epoch),
            progress=False,
        )
        return time.perf_counter() - started


def _compiles() -> bool:
    from benchmarks.train_step import kernels

    return kernels()


def _padding(dataset: Dataset, config: TrainConfig) -> float:
    """Share of the positions of a training epoch's batches that hold no concept."""
    empty = whole = 0
    for batch in batches(dataset, "train", config.batch_size, shuffle_seed=0):
        empty += int((batch.inputs < 0).sum())
        whole += batch.inputs.numel()
    return empty / whole
