"""Fine-tuning a model on a few chains of another dataset; what was trained is not trained again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ocp_mamba.baselines.checkpoint import SavedPredictor, load_predictor, save_baseline
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.learnt import Learnt
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.jobs.common import what_ran
from ocp_mamba.jobs.train_once import alarm_tags
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.trainer import fit


class FineTuned:
    """The folder of fine-tuned models of one model, a ``.pt`` for each dataset and settings."""

    def __init__(self, folder: Path, model: NextVectorModel, *, progress: bool) -> None:
        """Open the folder, which is made where it does not exist.

        Args:
            folder: of the files.
            model: what is fine-tuned; it is not changed.
            progress: show a bar for each training.
        """
        self._folder, self._model, self._progress = folder, model, progress
        self._digest = _digest(model)
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, few: Dataset, config: TrainConfig) -> Path:
        """Return the file of a fine-tuning."""
        settings = asdict(replace(config, threads=0))
        content = [self._digest, few.fingerprint, settings]
        key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
        return self._folder / f"transfer-seed{config.seed}-{key}.pt"

    def get(self, few: Dataset, config: TrainConfig, learnt: Learnt | None) -> SavedPredictor:
        """Return the model after training on a dataset's train split, in evaluation mode.

        The epoch that is kept is the one with the best cosine on the train chains themselves:
        neither val nor test of the dataset chooses anything.

        Args:
            few: its train split is learnt.
            config: settings, with the seed.
            learnt: all that the model has learnt from then, for the file; None where unknown.
        """
        path = self.path(few, config)
        if not path.exists():
            self._train(few, config, learnt, path)
        return load_predictor(path)

    def _train(self, few: Dataset, config: TrainConfig, learnt: Learnt | None, path: Path) -> None:
        model = copy.deepcopy(self._model)
        validate = validator(few, BankIndex(few.bank), "train")
        fitted = fit(model, few, config, validate=validate, progress=self._progress)
        loop: Mapping[str, Any] = {
            "history": [asdict(record) for record in fitted.history],
            "best_epoch": fitted.best_epoch,
            "minutes": fitted.train_minutes,
            "ran": {name: str(value) for name, value in what_ran(model, few, config).items()},
            "alarms": alarm_tags(fitted),
        }
        save = save_checkpoint if isinstance(model, OCPMambaLVM) else save_baseline
        save(
            path,
            model,  # type: ignore[arg-type]
            dataset_fingerprint=few.fingerprint,
            encoder=dict(few.meta.get("encoder", {})),
            loop=dict(loop),
            learnt=learnt.to_block() if learnt else None,
        )


def _digest(model: NextVectorModel) -> str:
    """SHA-256 of a model's weights and their names."""
    found = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()
