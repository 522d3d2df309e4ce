"""Trainings that several tables share: each leaves one ``.pt``, and is not run again.

The file is named after everything that the training depends on. It appears whole, when the training
has ended, so that a job that was cut off goes on, and several processes can share the work of one
folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ocp_mamba.baselines.checkpoint import SavedPredictor, load_predictor, save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.config import ModelConfig, TrainConfig, override
from ocp_mamba.data import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.jobs.common import ComparisonJob, Log, what_ran
from ocp_mamba.model import NextVectorModel, OCPMambaLVM, build_model
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.presets import preset
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.trainer import fit

MODEL = "lvm"
"""Kind of a training of the model itself; the others are keys of `TRAINED_BASELINES`."""


@dataclass(frozen=True)
class Training:
    """One training of a table's row, with one seed.

    Attributes:
        name: of the row.
        model: shape of the model; a trained baseline gets its number of parameters.
        config: settings, with the seed.
        kind: `MODEL`, or a key of `TRAINED_BASELINES`.
    """

    name: str
    model: ModelConfig
    config: TrainConfig
    kind: str = MODEL

    def __str__(self) -> str:
        """Return the row's name and the seed, for a person."""
        return f"{self.name}, seed {self.config.seed}"


class TrainedModels:
    """The folder of trained models that the tables share; a progress line for each training."""

    def __init__(self, folder: Path, log: Log, *, progress: bool) -> None:
        """Keep the folder, which is made where it does not exist.

        Args:
            folder: of the ``.pt`` files.
            log: takes what a person should read.
            progress: show a progress bar of each training.
        """
        self.folder, self._log, self._progress = folder, log, progress
        self._left = 0
        self._seconds: list[float] = []
        folder.mkdir(parents=True, exist_ok=True)

    def expect(self, trainings: int) -> None:
        """Note how many trainings there will be, so that progress lines say how many are left."""
        self._left = trainings

    def path(self, training: Training, dataset: Dataset) -> Path:
        """Return the file of a training on a dataset."""
        config = asdict(replace(training.config, threads=0))
        depends = [training.kind, dataset.fingerprint, asdict(training.model), config]
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{training.kind}-seed{training.config.seed}-{key}.pt"

    def get(self, training: Training, dataset: Dataset, index: BankIndex) -> SavedPredictor:
        """Return the trained model, in evaluation mode, which is trained where it has no file yet."""
        path = self.path(training, dataset)
        self._log(f"\n{training}: {self._outlook(path)}")
        if not path.exists():
            started = time.perf_counter()
            self._log(f"{training}: {self._train(training, dataset, index, path)}")
            self._seconds.append(time.perf_counter() - started)
        self._left = max(0, self._left - 1)
        return load_predictor(path)

    def _outlook(self, path: Path) -> str:
        if path.exists():
            return f"trained before, {path.name}"
        if not self._seconds:
            return f"training, {self._left} to go"
        minutes = self._left * float(np.mean(self._seconds)) / 60
        return f"training, {self._left} to go, about {minutes:.0f} minutes at the mean so far"

    def _train(self, training: Training, dataset: Dataset, index: BankIndex, path: Path) -> str:
        """Train on the train split, keep the epoch that is best on val, write the file."""
        torch.manual_seed(training.config.seed)
        model: NextVectorModel = build_model(training.model)
        if training.kind != MODEL:
            torch.manual_seed(training.config.seed)
            model = TRAINED_BASELINES[training.kind](training.model, model.num_parameters())
        fitted = fit(
            model,
            dataset,
            training.config,
            validate=validator(dataset, index),
            progress=self._progress,
        )
        ran = what_ran(model, dataset, training.config)
        loop = {
            "history": [asdict(record) for record in fitted.history],
            "best_epoch": fitted.best_epoch,
            "minutes": fitted.train_minutes,
            "ran": {name: str(value) for name, value in ran.items()},
            "alarms": {alarm.tag: str(alarm) for alarm in fitted.alarms},
        }
        save = save_checkpoint if isinstance(model, OCPMambaLVM) else save_baseline
        save(
            path,
            model,  # type: ignore[arg-type]
            dataset_fingerprint=dataset.fingerprint,
            encoder=dict(dataset.meta.get("encoder", {})),
            loop=loop,
        )
        return (
            f"{model.num_parameters():,} parameters, {fitted.train_minutes:.1f} minutes, "
            f"validation cosine {fitted.best_cosine:.4f} at epoch {fitted.best_epoch}"
        )


def history_of(saved: SavedPredictor) -> list[EpochRecord]:
    """Return the epochs of a trained model, as its file has them."""
    return [EpochRecord(**record) for record in saved.loop["history"]]


def preset_settings(job: ComparisonJob, name: str) -> tuple[ModelConfig, TrainConfig]:
    """Return a job's settings as a preset changes them; the job's ``max_epochs`` is the most.

    Raises:
        ConfigError: the preset does not go with the job's settings.
    """
    found = preset(name)
    train = override(job.train, **found.train)
    epochs = min(train.max_epochs, job.train.max_epochs)
    return override(job.model, **found.model), replace(train, max_epochs=epochs)
