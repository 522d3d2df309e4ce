"""Fine-tuning a model on a few chains of another dataset; what was trained is not trained again."""

from __future__ import annotations

import copy
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from ocp_mamba.baselines.checkpoint import SavedPredictor, load_predictor
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.learnt import Learnt
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.jobs.train_once import fit_and_save
from ocp_mamba.model.base import NextVectorModel


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
        fit_and_save(
            model, few, config, path, validate=validate, learnt=learnt, progress=self._progress
        )


def _digest(model: NextVectorModel) -> str:
    """SHA-256 of a model's weights and their names."""
    found = hashlib.sha256(type(model).__name__.encode())
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().float().numpy().tobytes())
    return found.hexdigest()
