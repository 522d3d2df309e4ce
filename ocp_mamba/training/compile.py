"""Whether a training computes with the compiled kernels, and why, for the log and the tracker."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from ocp_mamba import errors
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.kernels import cpu
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.capture.step import compiles, why_not

COMPILE_SECONDS = 15.0
"""Upper estimate of the time to compile; one core took 10 s."""
SAVED_SECONDS = 15e-9
"""Time saved per position, layer and inner channel, measured on 2 cores (docs/lab-notes.md)."""


@dataclass(frozen=True)
class Compiled:
    """The kernels' state, ``on``, ``off`` or ``failed``, the reason, and the seconds to compile."""

    state: str
    why: str
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return it in a few words, for a person."""
        cost = f", {self.seconds:.1f} s" if self.state == "on" else ""
        return f"compile {self.state} ({self.why}{cost})"

    def params(self) -> dict[str, object]:
        """Return the params of the tracked run."""
        return {
            "ran.compile": f"failed ({self.why})" if self.state == "failed" else self.state,
            "ran.compile_seconds": round(self.seconds, 1),
        }


def seconds_saved(model: ModelConfig, dataset: Dataset, epochs: int) -> float:
    """Estimate the time that the kernels save in a training of that many epochs, in seconds."""
    positions = int((dataset.lengths[dataset.chains_in("train")] - 1).sum())
    return SAVED_SECONDS * positions * epochs * model.n_layers * model.d_inner


def start_kernels(model: NextVectorModel, dataset: Dataset, config: TrainConfig) -> Compiled:
    """Let this process compute with the CPU kernels, or in plain torch, as the config asks.

    ``auto`` compiles where that saves more time than it costs. Where compilation fails, a warning
    gives the reason and training goes on in plain torch.

    On a GPU, ``on`` lets torch's compiler fuse the layers of the captured step
    (`training.capture`), and ``off`` captures nothing.

    Raises:
        CompileError: compilation is ``on`` and fails, or the step cannot be captured.
    """
    cpu.use(False)
    if config.compile == "off":
        return Compiled("off", "asked for")
    if not isinstance(model, OCPMambaLVM):
        return Compiled("off", "the model has no Mamba-2 layers")
    device = next(model.parameters()).device
    if device.type != "cpu":
        return _on_gpu(model, dataset, config, device)
    if config.compile == "auto":
        saved = seconds_saved(model.config, dataset, config.max_epochs)
        if saved < COMPILE_SECONDS:
            return Compiled("off", f"it would save about {saved:.0f} s")
    try:
        cpu.use(True)
    except errors.CompileError as error:
        if config.compile == "on":
            raise
        warnings.warn(
            "the CPU kernels do not compile, so training goes on in plain torch, more slowly: "
            f"{error}; --compile off avoids this warning",
            stacklevel=2,
        )
        return Compiled("failed", str(error))
    why = "asked for" if config.compile == "on" else "it pays within the run"
    return Compiled("on", why, cpu.library().seconds)


def _on_gpu(
    model: OCPMambaLVM, dataset: Dataset, config: TrainConfig, device: torch.device
) -> Compiled:
    """Whether torch's compiler fuses the layers of the captured step.

    Raises:
        CompileError: that was asked for, and the step cannot be captured or compiled.
    """
    if config.compile != "on":
        return Compiled("off", "on a GPU torch's compiler is used where it is asked for")
    reason = why_not(model, config, device)
    longest = int(dataset.lengths[dataset.chains_in("train")].max()) - 1
    if not reason and not compiles(model, longest):
        reason = f"torch's compiler would unroll the many chunks of {longest} positions"
    if reason:
        raise errors.CompileError(
            f"compile 'on' was asked for, but not for this training: {reason}; use compile 'auto'"
        )
    return Compiled("on", "torch's compiler, in the captured step")
