"""The files of a training: the best epoch's ``.pt``, and the state to resume from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.learnt import learnt_from
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import (
    CheckpointError,
    ConfigError,
    OutputError,
    ResumeError,
    TrainingError,
    first_line,
)
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.asked import differences
from ocp_mamba.training.history import EpochProgress, EpochRecord
from ocp_mamba.training.run_folder import resume_path
from ocp_mamba.training.state import TrainState

STATE_KEYS = ("history", "optimizer", "step", "train_config")
"""What ``<stem>.last.pt`` holds beside the weights, in files of every version."""


@dataclass(frozen=True)
class SavedState:
    """What a state file holds, and the weights of the best epoch so far; plain values and tensors.

    Attributes:
        weights: of the last step.
        best_weights: of the best epoch, or None before the first epoch's end.
        history: the epochs that have ended.
        progress: of the epoch after them, where the state was written within it.
        optimizer: its state, or None where no step follows.
        step: number of steps so far.
        rng: states of torch's generators, by device; empty in files of earlier versions.
    """

    weights: dict[str, Tensor]
    best_weights: dict[str, Tensor] | None
    history: list[EpochRecord]
    progress: EpochProgress | None
    optimizer: dict[str, Any] | None
    step: int
    rng: dict[str, Any]

    def put_into(self, state: TrainState) -> None:
        """Set a training to this state: weights, optimizer, step, epochs, and draws.

        Only rank 0 goes on with the draws of the process that wrote the state; the others begin a
        new sequence, which differs from the one that they have had.
        """
        state.model.load_state_dict(self.weights)
        if self.optimizer is not None:
            state.optimizer.load_state_dict(self.optimizer)
        state.history = list(self.history)
        state.step = self.step
        state.progress = self.progress
        if not state.world.main:
            torch.manual_seed(torch.initial_seed() + self.step)
        elif self.rng:
            torch.set_rng_state(self.rng["cpu"])
            if self.rng["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self.rng["cuda"])


class StateFiles:
    """The best epoch's ``.pt``, and beside it the state to resume from.

    The state is written first. A kill between the two writes leaves the state of the epoch that is
    the best one, which has its weights: `load` then writes the best epoch's file again.
    """

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
        self._model = model
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
        """Write the state, and at the end of an epoch that is the best one its weights.

        Raises:
            OutputError: a file cannot be written; names the last good state.
        """
        if self._best is None or self._last is None:
            return
        record = state.history[-1] if state.history else None
        ended = record is not None and record.is_last
        loop = {
            "history": [asdict(r) for r in state.history],
            "progress": state.progress and asdict(state.progress),
            "optimizer": None if ended else state.optimizer.state_dict(),
            "step": state.step,
            "train_config": asdict(self._config),
            "rng": {
                "cpu": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            },
        }
        self._save(self._last, state.model, loop)
        if record is not None and record.is_best and state.progress is None:
            self._save(self._best, state.model, {"epoch": record.epoch, "val": record.val})

    def load(self) -> SavedState:
        """Read the state and the best epoch's weights.

        Raises:
            ResumeError: there is no state, or it is of another training or another version.
        """
        if self._last is None or self._best is None:
            raise ResumeError("cannot resume without an output path")
        try:
            checkpoint = load_checkpoint(self._last)
        except CheckpointError as error:
            raise ResumeError(f"cannot resume: {error}") from error
        loop = checkpoint.loop
        if absent := [key for key in STATE_KEYS if key not in loop]:
            raise ResumeError(
                f"cannot resume {self._last}: it is no state of a training ({absent[0]} is missing)"
            )
        self._require_same(checkpoint)
        progress = loop.get("progress")
        history = self._epochs_of(loop["history"])
        return SavedState(
            checkpoint.state_dict,
            self._best_weights(history, checkpoint),
            history,
            EpochProgress(**progress) if progress else None,
            loop["optimizer"],
            loop["step"],
            loop.get("rng", {}),
        )

    def _best_weights(
        self, history: list[EpochRecord], checkpoint: Checkpoint
    ) -> dict[str, Tensor] | None:
        """The best epoch's weights, out of its own file or, where that is older, out of the state.

        Raises:
            ResumeError: neither has them.
        """
        assert self._best is not None
        best = next((r for r in reversed(history) if r.is_best), None)
        if best is None:
            return None
        try:
            saved = load_checkpoint(self._best)
            if saved.loop.get("epoch") == best.epoch:
                return saved.state_dict
            found = f"{self._best} holds epoch {saved.loop.get('epoch')}"
        except CheckpointError as error:
            found = str(error)
        if best is history[-1] and not checkpoint.loop.get("progress"):
            self._model.load_state_dict(checkpoint.state_dict)
            self._save(self._best, self._model, {"epoch": best.epoch, "val": best.val})
            return checkpoint.state_dict
        raise ResumeError(
            f"cannot resume {self._last}: the best epoch so far is {best.epoch}, but {found}; "
            "start again without --resume"
        )

    def _require_same(self, checkpoint: Checkpoint) -> None:
        """Refuse a state of other settings, another model or other data.

        Raises:
            ResumeError: names what differs.
        """
        then = self._settings_of(checkpoint.loop["train_config"])
        now: dict[str, Any] = {"train": asdict(self._config)}
        found: dict[str, Any] = {"train": asdict(then)}
        if isinstance(self._model, OCPMambaLVM):
            now["model"] = asdict(self._model.config)
            found["model"] = asdict(checkpoint.model_config)
        now["dataset"], found["dataset"] = self._fingerprint, checkpoint.dataset_fingerprint
        if changed := differences(found, now):
            raise ResumeError(f"cannot resume {self._last}: {changed}")

    def _settings_of(self, stored: dict[str, Any]) -> TrainConfig:
        """The settings that the file was trained with."""
        self._refuse_unknown(TrainConfig, stored, "setting")
        try:
            return TrainConfig(**stored)
        except ConfigError as error:
            raise ResumeError(f"cannot resume {self._last}: its settings: {error}") from error

    def _epochs_of(self, stored: list[dict[str, Any]]) -> list[EpochRecord]:
        """The epochs that the file was trained for."""
        for record in stored:
            self._refuse_unknown(EpochRecord, record, "entry of an epoch")
        return [EpochRecord(**record) for record in stored]

    def _refuse_unknown(self, kind: type, stored: dict[str, Any], what: str) -> None:
        """Refuse a file with a field that this version does not have.

        Raises:
            ResumeError: names the file, the field and the way out.
        """
        unknown = sorted(set(stored) - {f.name for f in fields(kind)})
        if unknown:
            raise ResumeError(
                f"cannot resume {self._last}: it has the {what} {', '.join(unknown)}, which this "
                "version of ocp_mamba does not have; resume it with the version that wrote it, or "
                "start again without --resume"
            )

    def _save(self, path: Path, model: NextVectorModel, loop: dict[str, Any]) -> None:
        assert isinstance(model, OCPMambaLVM)
        try:
            save_checkpoint(
                path,
                model,
                dataset_fingerprint=self._fingerprint,
                encoder=self._encoder,
                loop=loop,
                learnt=self.learnt,
            )
        except (OSError, RuntimeError) as error:  # torch's writer turns some into RuntimeError
            raise OutputError(
                f"cannot write {path}: {first_line(error)}; {self._kept()}"
            ) from error

    def _kept(self) -> str:
        """What is left on the disk to go on from."""
        if self._last is None or not self._last.exists():
            return "no state was written before"
        return f"the last good state is in {self._last}: free space and go on with --resume"
