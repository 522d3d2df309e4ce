"""The files of a training: the best epoch's ``.pt``, and the state to resume from."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import CheckpointError, TrainingError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import load_checkpoint, save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM

if TYPE_CHECKING:
    from ocp_mamba.training.state import TrainState


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

    def restore(self, state: TrainState) -> list[dict[str, Any]]:
        """Bring a state back to where the file is; returns the fields of each epoch's record.

        Raises:
            TrainingError: there is no file, or it is of another training.
        """
        if self._last is None:
            raise TrainingError("cannot resume without an output path")
        try:
            checkpoint = load_checkpoint(self._last)
        except CheckpointError as error:
            raise TrainingError(f"cannot resume: {error}") from error
        then = TrainConfig(**checkpoint.loop["train_config"])
        if _what_matters(then) != _what_matters(self._config):
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
        state.model.load_state_dict(checkpoint.state_dict)
        state.optimizer.load_state_dict(checkpoint.loop["optimizer"])
        state.step = checkpoint.loop["step"]
        history: list[dict[str, Any]] = checkpoint.loop["history"]
        return history

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
        )


def _what_matters(config: TrainConfig) -> TrainConfig:
    """The config without what a resumed training may change: where and how fast it computes."""
    return replace(config, threads=0, compile="auto")


def resume_path(output: Path) -> Path:
    """Return where the state to resume a training with this output from is kept."""
    return output.with_name(f"{output.stem}.last{output.suffix}")
