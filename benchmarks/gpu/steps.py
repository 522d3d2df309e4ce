"""Training steps of several models, plain and captured, as calls that return the loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.place import Place
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch
from ocp_mamba.kernels import cuda
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.capture.step import CapturedStep
from ocp_mamba.training.negatives import NO_NEGATIVES
from ocp_mamba.training.state import TrainState
from ocp_mamba.training.trainer import make_optimizer, train_step

LR = 1e-6
"""Of the steps that are timed: the weights hardly change."""
THEIR_CHUNK = 256
"""Default chunk of mamba_ssm's block."""


def plain_state(model: NextVectorModel, config: TrainConfig, precision: str) -> TrainState:
    """Return the state of a training whose steps run one operation at a time."""
    model.train()
    return TrainState(model, make_optimizer(model, config), precision)


def captured_step(
    model: NextVectorModel, config: TrainConfig, precision: str, bank: Tensor, B: int, L: int
) -> CapturedStep:
    """Return the captured step of batches of up to B chains of L vectors."""
    model.train()
    optimizer = make_optimizer(model, config)
    return CapturedStep(model, optimizer, precision, NO_NEGATIVES, bank, config, rows=B, longest=L)


def plain_call(
    model: NextVectorModel, config: TrainConfig, precision: str, batch: Batch, bank: Tensor
) -> Callable[[], float]:
    """Return a call that takes a plain step and returns the loss before it."""
    state = plain_state(model, config, precision)
    return lambda: train_step(state, batch, bank, LR, config)["total"]


def captured_call(
    model: NextVectorModel, config: TrainConfig, precision: str, batch: Batch, bank: Tensor
) -> Callable[[], float]:
    """Return a call that replays a captured step and returns the loss before it.

    The call raises `RuntimeError` where the step cannot be captured, with the reason.
    """
    step = captured_step(model, config, precision, bank, *batch.mask.shape)

    def call() -> float:
        values = step(batch, LR)
        if values is None:
            raise RuntimeError(str(step))
        return values["total"]

    return call


def copy_of(model: OCPMambaLVM) -> OCPMambaLVM:
    """Return a model with the same weights, on the same device."""
    copy = build_model(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(next(model.parameters()).device)


def with_their_mixers(model: OCPMambaLVM, place: Place, length: int) -> OCPMambaLVM:
    """Return a copy of a model whose mixers are mamba_ssm's `Mamba2`, with the same weights.

    Their fused path needs causal_conv1d; without it they take their path by parts. They get the
    chunks that suit the length: their default's 256 positions, or fewer for short sequences. On a
    CPU a copy of our own mixers stands in.
    """
    copy = copy_of(model)
    if place.stand_in:
        return copy
    block = cuda.mamba_ssm_module("modules.mamba2").Mamba2
    c = model.config
    fused = cuda.parts()[cuda.CONVOLUTION].by == cuda.CAUSAL_CONV1D
    chunk = c.chunk_size if length <= 2 * c.chunk_size else THEIR_CHUNK
    for i, layer in enumerate(copy.layers):
        assert isinstance(layer.mixer, nn.Module)
        theirs = block(
            c.d_model, d_state=c.d_state, d_conv=c.d_conv, expand=c.expand, headdim=c.headdim,
            chunk_size=chunk, use_mem_eff_path=fused, layer_idx=i, device=place.device,
        )  # fmt: skip
        theirs.load_state_dict(layer.mixer.state_dict(), strict=True)
        layer.mixer = theirs
    return copy


def their_path(place: Place) -> str:
    """Return in a few words which way mamba_ssm's block takes here."""
    if place.stand_in:
        return "our own mixers stand in"
    by = cuda.parts()[cuda.CONVOLUTION].by
    return "fused path" if by == cuda.CAUSAL_CONV1D else "path by parts, no causal_conv1d"


def smallest_configurations(place: Place) -> None:
    """Let Triton's autotuner know one configuration of each kernel, in this process.

    A first call compiles and times every configuration it knows, for each new shape of a head,
    which takes a minute or two. Call this before mamba_ssm is imported.
    """
    if place.stand_in:
        return
    import triton

    original = triton.autotune

    def cost(config: Any) -> float:
        return math.prod(v for v in config.kwargs.values() if isinstance(v, int)) * max(
            1, config.num_stages or 1
        )

    def autotune(configs: Any, *args: Any, **kwargs: Any) -> Any:
        return original([min(configs, key=cost)], *args, **kwargs)

    triton.autotune = autotune


def first_line(error: BaseException) -> str:
    """Return an error in one line, with its class."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"


def free() -> None:
    """Give back what dropped models held on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
