"""The files of a training: the best epoch's ``.pt``, and the state to resume from."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.learnt import learnt_from
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import CheckpointError, ConfigError, TrainingError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import load_checkpoint, save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.state import TrainState

STATE_KEYS = ("history", "optimizer", "step", "train_config")
"""What ``<stem>.last.pt`` holds beside the weights."""


class StateFiles:
    """The best epoch's ``.pt`` and, until training ends, the state to resume from."""

    def __init__(
        self, output: Path | None, model: NextVectorModel, dataset: Dataset, config: TrainConfig
    ) -> None:
        """Name the files of a training.

        Raises:
            TrainingError: the model is of a kind that has no ``.pt``.
        """
        if output is not None and not isinstance(model, OCPMambaLVM):
            raise TrainingError(f"a {type(model).__name__} has no .pt file; leave the output out")
        self._best = output
        self._last = output and resume_path(output)
        self._fingerprint = dataset.fingerprint
        self._encoder = dict(dataset.meta.get("encoder", {}))
        self._config = config
        self._dataset = dataset

    @cached_property
    def learnt(self) -> dict[str, Any] | None:
        """Hashes of what is learnt, for each ``.pt`` of the training; None without an output."""
        if self._best is None:
            return None
        return learnt_from(self._dataset, self._config.min_context).to_block()

    def write(self, state: TrainState) -> None:
        """Write the last epoch's state, and its weights where it is the best one."""
        if self._best is None or self._last is None:
            return
        record = state.history[-1]
        if record.is_best:
            self._save(self._best, state, {"epoch": record.epoch, "val": record.val})
        if not record.is_last:
            loop = {
                "history": [asdict(r) for r in state.history],
                "optimizer": state.optimizer.state_dict(),
                "step": state.step,
                "train_config": asdict(self._config),
            }
            self._save(self._last, state, loop)

    def restore(self, state: TrainState) -> None:
        """Set a state to what the file holds: weights, optimizer, step and epochs.

        Raises:
            TrainingError: there is no file, or it is of another training or another version.
        """
        if self._last is None:
            raise TrainingError("cannot resume without an output path")
        try:
            checkpoint = load_checkpoint(self._last)
        except CheckpointError as error:
            raise TrainingError(f"cannot resume: {error}") from error
        loop = checkpoint.loop
        if absent := [key for key in STATE_KEYS if key not in loop]:
            raise TrainingError(
                f"cannot resume {self._last}: it is no state of a training ({absent[0]} is missing)"
            )
        then = self._settings_of(loop["train_config"])
        if _comparable(then) != _comparable(self._config):
            raise TrainingError(f"cannot resume {self._last}: it was trained with {then}")
        assert isinstance(state.model, OCPMambaLVM)
        if checkpoint.model_config != state.model.config:
            raise TrainingError(
                f"cannot resume {self._last}: its model is {checkpoint.model_config}"
            )
        if checkpoint.dataset_fingerprint != self._fingerprint:
            raise TrainingError(
                f"cannot resume {self._last}: it was trained on dataset "
                f"{checkpoint.dataset_fingerprint[:12]}, this one is {self._fingerprint[:12]}"
            )
        state.history = self._epochs_of(loop["history"])
        state.model.load_state_dict(checkpoint.state_dict)
        state.optimizer.load_state_dict(loop["optimizer"])
        state.step = loop["step"]

    def _settings_of(self, stored: dict[str, Any]) -> TrainConfig:
        """The settings that the file was trained with."""
        self._refuse_unknown(TrainConfig, stored, "setting")
        try:
            return TrainConfig(**stored)
        except ConfigError as error:
            raise TrainingError(f"cannot resume {self._last}: its settings: {error}") from error

    def _epochs_of(self, stored: list[dict[str, Any]]) -> list[EpochRecord]:
        """The epochs that the file was trained for."""
        for record in stored:
            self._refuse_unknown(EpochRecord, record, "entry of an epoch")
        return [EpochRecord(**record) for record in stored]

    def _refuse_unknown(self, kind: type, stored: dict[str, Any], what: str) -> None:
        """Refuse a file with a field that this version does not have.

        Raises:
            TrainingError: names the file, the field and the way out.
        """
        unknown = sorted(set(stored) - {f.name for f in fields(kind)})
        if unknown:
            raise TrainingError(
                f"cannot resume {self._last}: it has the {what} {', '.join(unknown)}, which this "
                "version of ocp_mamba does not have; resume it with the version that wrote it, or "
                "start again without --resume"
            )

    def read_best(self) -> dict[str, Tensor]:
        """Return the weights of the best epoch so far."""
        assert self._best is not None
        return load_checkpoint(self._best).state_dict

    def finish(self) -> None:
        """Remove the state to resume from: training has ended."""
        if self._last is not None:
            self._last.unlink(missing_ok=True)

    def _save(self, path: Path, state: TrainState, loop: dict[str, Any]) -> None:
        assert isinstance(state.model, OCPMambaLVM)
        save_checkpoint(
            path,
            state.model,
            dataset_fingerprint=self._fingerprint,
            encoder=self._encoder,
            loop=loop,
            learnt=self.learnt,
        )


def _comparable(config: TrainConfig) -> TrainConfig:
    """The config without the settings that a resumed training may change."""
    return replace(config, threads=0, compile="auto")


def resume_path(output: Path) -> Path:
    """Return the path of the state from which a training with this output is resumed."""
    return output.with_name(f"{output.stem}.last{output.suffix}")
