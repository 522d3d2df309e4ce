"""Where the time of a tracked training epoch goes, and how much all except the steps adds."""

from __future__ import annotations

import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.frame import ROOT, Goal, Table
from benchmarks.models import HEDGED, SINGLE, hedged_model, hedged_training
from benchmarks.run import Run
from benchmarks.train_step import kernels
from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training import trainer
from ocp_mamba.training.state import EpochResult

DATA = ROOT / "ocp_training_9k.npz"
SHARE_GOAL = 0.15
EPOCHS = 3
STEPS, EVALUATION, CHECKPOINTS = "steps", "evaluation and retrieval", "checkpoints"
TRACKING, REST = "tracking", "gathering, bucketing, bookkeeping"
PARTS = (STEPS, EVALUATION, CHECKPOINTS, TRACKING, REST)


class TimeOver(Exception):  # noqa: N818
    """No further epoch is to be started."""


class Clock:
    """Seconds by part; the time of a part within another is not counted twice."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._inner: list[float] = []

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return the call; its time is counted for the part."""

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


def main(run: Run) -> None:
    """Train epochs of the default dataset in a tracked run, and divide up their mean time."""
    dataset = Dataset.load(DATA)
    epochs = 1 if run.quick else EPOCHS
    config = TrainConfig(max_epochs=epochs, compile="on" if kernels() else "off")
    models = {
        "default model": (MODEL_SIZES["tiny"] if run.quick else SINGLE, config),
        f"preset {HEDGED}": (
            hedged_model(run.quick),
            replace(hedged_training(config), max_epochs=epochs),
        ),
    }
    declared = [
        (
            run.table(f"One tracked epoch, {name}", [{"part": part} for part in PARTS]),
            run.goal(f"{name}: everything except the steps adds less than {SHARE_GOAL:.0%}"),
        )
        for name in models
    ]
    for (shape, training), (table, goal) in zip(models.values(), declared, strict=True):
        if not run.over():
            measure(run, dataset, shape, training, table, goal)


def measure(
    run: Run, dataset: Dataset, shape: ModelConfig, config: TrainConfig, table: Table, goal: Goal
) -> None:
    """Train one model, and fill in its table and its goal."""
    torch.manual_seed(0)
    model, clock = build_model(shape), Clock()
    with tempfile.TemporaryDirectory() as folder:
        epochs, total = _train(run, model, dataset, config, clock, Path(folder))
    seconds, steps = clock.seconds, clock.seconds[STEPS]
    seconds[REST] = total - sum(seconds.values())
    for row in table.rows:
        taken = seconds[str(row["part"])]
        run.fill(row, {"seconds": taken / epochs, "% of the steps": 100 * taken / steps})
    table.note = (
        f"Mean of {epochs} epochs, {model.num_parameters():,} parameters, default settings of "
        "training, MLflow on SQLite in an empty folder; of a batch's positions "
        f"{_padding(dataset, config):.1%} are padding."
    )
    added = (total - steps) / steps
    run.reach(goal, f"{added:.1%}", added < SHARE_GOAL)


def _train(
    bench: Run, model: OCPMambaLVM, dataset: Dataset, config: TrainConfig, clock: Clock,
    folder: Path,
) -> tuple[int, float]:  # fmt: skip
    """Train as the main job does; returns the epochs and the seconds that they took."""
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
    from ocp_mamba.tracking.session import config_params, track
    from ocp_mamba.training.checkpointing import StateFiles

    validate = validator(dataset, BankIndex(dataset.bank))
    params = config_params(model=model.config, train=config)
    epochs = 0
    with (
        track(dataset, DATA, output_dir=folder, params=params) as run,
        patch.object(trainer, "train_step", clock.timed(STEPS, trainer.train_step)),
        patch.object(StateFiles, "write", clock.timed(CHECKPOINTS, StateFiles.write)),
    ):
        record = clock.timed(TRACKING, run.on_epoch)

        def on_epoch(result: EpochResult) -> None:
            nonlocal epochs
            record(result)
            epochs += 1
            if bench.over():
                raise TimeOver

        started = time.perf_counter()
        with suppress(TimeOver):
            trainer.fit(
                model,
                dataset,
                config,
                validate=clock.timed(EVALUATION, validate),
                output=folder / "model.pt",
                on_epoch=on_epoch,
                progress=False,
            )
        return epochs, time.perf_counter() - started


def _padding(dataset: Dataset, config: TrainConfig) -> float:
    """Share of the positions of a training epoch's batches that hold no concept."""
    empty = whole = 0
    for batch in batches(dataset, "train", config.batch_size, shuffle_seed=0):
        empty += int((batch.inputs < 0).sum())
        whole += batch.inputs.numel()
    return empty / whole
