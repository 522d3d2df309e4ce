"""Trainings that several tables share: each writes one ``.pt`` and is not run again.

The name of the file has a hash of everything that the training depends on. The file is written when
the training has ended, so that an interrupted job can be started again, and several processes can
share the work of one folder.
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
from ocp_mamba.data.analysis.learnt import Learnt, learnt_from
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.jobs.common import ComparisonJob, Log, what_ran
from ocp_mamba.model import NextVectorModel, OCPMambaLVM, build_model
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.presets import preset
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.state import FitResult
from ocp_mamba.training.trainer import Validate, fit

MODEL = "lvm"
"""Kind of a training of the model itself; the other kinds are keys of `TRAINED_BASELINES`."""


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
        """Open the folder.

        Args:
            folder: of the ``.pt`` files, made where it does not exist.
            log: prints a line for a person.
            progress: show a progress bar of each training.
        """
        self.folder, self._log, self._progress = folder, log, progress
        self._left = 0
        self._seconds: list[float] = []
        folder.mkdir(parents=True, exist_ok=True)

    def expect(self, trainings: int) -> None:
        """Set the number of trainings, of which the progress lines show how many are left."""
        self._left = trainings

    def path(self, training: Training, dataset: Dataset) -> Path:
        """Return the file of a training on a dataset."""
        config = asdict(replace(training.config, threads=0))
        content = [training.kind, dataset.fingerprint, asdict(training.model), config]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return self.folder / f"{training.kind}-seed{training.config.seed}-{key}.pt"

    def get(self, training: Training, dataset: Dataset, index: BankIndex) -> SavedPredictor:
        """Return the model in evaluation mode; it is trained first where it has no file yet."""
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
        """Train on the train split and write the epoch that is best on val; returns a summary."""
        config = training.config
        torch.manual_seed(config.seed)
        model: NextVectorModel = build_model(training.model)
        if training.kind != MODEL:
            size = model.num_parameters()
            model = build_baseline(training.kind, training.model, size, config.seed)
        validate = validator(dataset, index)
        fitted = fit_and_save(
            model,
            dataset,
            config,
            path,
            validate=validate,
            learnt=learnt_from(dataset, config.min_context),
            progress=self._progress,
        )
        return (
            f"{model.num_parameters():,} parameters, {fitted.train_minutes:.1f} minutes, "
            f"validation cosine {fitted.best_cosine:.4f} at epoch {fitted.best_epoch}"
        )


def build_baseline(kind: str, shape: ModelConfig, parameters: int, seed: int) -> NextVectorModel:
    """Return an untrained baseline of a model's size.

    Args:
        kind: a key of `TRAINED_BASELINES`.
        shape: of the model.
        parameters: of the model.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    return TRAINED_BASELINES[kind](shape, parameters)


def fit_and_save(
    model: NextVectorModel,
    dataset: Dataset,
    config: TrainConfig,
    path: Path,
    *,
    validate: Validate,
    learnt: Learnt | None,
    progress: bool,
) -> FitResult:
    """Train a model or a baseline, and write its ``.pt`` with the history of the training.

    Args:
        model: trained in place; it has the best epoch's weights afterwards.
        dataset: to train on.
        config: settings of the training.
        path: the file to write, when the training has ended.
        validate: as `fit`.
        learnt: all that the model has learnt from then, for the file; None where unknown.
        progress: show a progress bar.
    """
    fitted = fit(model, dataset, config, validate=validate, progress=progress)
    ran = what_ran(model, dataset, config)
    loop = {
        "history": [asdict(record) for record in fitted.history],
        "best_epoch": fitted.best_epoch,
        "minutes": fitted.train_minutes,
        "ran": {name: str(value) for name, value in ran.items()},
        "alarms": alarm_tags(fitted),
    }
    save = save_checkpoint if isinstance(model, OCPMambaLVM) else save_baseline
    save(
        path,
        model,  # type: ignore[arg-type]
        dataset_fingerprint=dataset.fingerprint,
        encoder=dict(dataset.meta.get("encoder", {})),
        loop=loop,
        learnt=learnt.to_block() if learnt else None,
    )
    return fitted


def alarm_tags(fitted: FitResult) -> dict[str, str]:
    """Return the alarms of a training as tags of its run."""
    return {alarm.tag: str(alarm) for alarm in fitted.alarms}


def history_of(saved: SavedPredictor) -> list[EpochRecord]:
    """Return the epochs of a trained model, as its file has them."""
    return [EpochRecord(**record) for record in saved.loop["history"]]


def preset_settings(job: ComparisonJob, name: str) -> tuple[ModelConfig, TrainConfig]:
    """Return a job's settings with a preset's changes, and at most the job's ``max_epochs``.

    Raises:
        ConfigError: the preset does not go with the job's settings.
    """
    found = preset(name)
    train = override(job.train, **found.train)
    epochs = min(train.max_epochs, job.train.max_epochs)
    return override(job.model, **found.model), replace(train, max_epochs=epochs)
