"""The operations of a Mamba-2 mixer by CUDA kernels, of which each part has its own source.

- scan and step: the Triton kernels of mamba_ssm, whose Python sources alone are needed;
- convolution: causal_conv1d where it is installed, else `kernels.triton_conv`.

Nothing of these is imported before the first operation on a CUDA tensor, and never on a machine
without a GPU. A part that is missing runs in plain torch. Each function has the arguments, shapes
and meaning of the function of the same name in plain torch (`ops`, `step`), and only changes their
order and layout.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

INSTALL = (
    "MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-deps --no-build-isolation "
    "mamba-ssm"
)
"""Installs mamba_ssm's Python sources alone; CUDA's compiler nvcc is not needed."""
INSTALL_CONV = "pip install --no-build-isolation causal-conv1d"
"""Builds against the installed torch, and needs nvcc."""

SCAN, STEP, CONVOLUTION = "scan", "step", "convolution"
TORCH, TRITON = "torch", "triton"
MAMBA_SSM, CAUSAL_CONV1D = "mamba_ssm", "causal_conv1d"
SCAN_MODULE, STEP_MODULE = "ops.triton.ssd_combined", "ops.triton.selective_state_update"

CONV_WIDTHS = (2, 3, 4)
"""Widths that causal_conv1d has kernels for."""
STRIDE = 8
"""causal_conv1d takes a channels-last input without a copy if its strides are multiples of 8."""
EXACT_FLOAT32 = ("TRITON_F32_DEFAULT", "ieee")
"""Triton else rounds the factors of float32 products to 10 bits (TF32)."""
SMALLEST_CHUNK = 16
"""mamba_ssm's scan takes chunks of a power of two, at least this; it gave NaN for others."""


class Part(NamedTuple):
    """What computes one part of a mixer, ``torch`` for plain torch, and why nothing better."""

    by: str
    why: str = ""
    way_out: str = ""


@functools.cache
def parts() -> dict[str, Part]:
    """Return what computes the scan, the step and the convolution of CUDA tensors."""
    if not torch.cuda.is_available():
        none = Part(TORCH, "torch sees no CUDA device", "run it on a machine with a GPU")
        return dict.fromkeys((SCAN, STEP, CONVOLUTION), none)
    return {
        SCAN: _mamba_ssm_part(SCAN_MODULE),
        STEP: _mamba_ssm_part(STEP_MODULE),
        CONVOLUTION: _convolution_part(),
    }


def missing() -> str:
    """Return which parts have no kernels here and why, in a few words; empty where all have."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, part in parts().items():
        if part.by == TORCH:
            reasons.setdefault((part.why, part.way_out), []).append(name)
    return "; ".join(
        f"the {' and the '.join(names)} {'has' if len(names) == 1 else 'have'} no kernels: {why} "
        f"(way out: {way_out})"
        for (why, way_out), names in reasons.items()
    )


def described() -> str:
    """Return what computes each part, for a person and for the tracked run."""
    return ", ".join(f"{name} {part.by}" for name, part in parts().items())


def has_kernels(part: str) -> bool:
    """Whether a part is computed by kernels on this machine's GPU."""
    return parts()[part].by != TORCH


def mamba_ssm_module(name: str) -> ModuleType:
    """Import a module of mamba_ssm without the package's own ``__init__``.

    That one imports compiled parts and transformers, which none of the kernels here needs, and
    which are missing where only the Python sources are installed. So an empty package of that name
    stands in while the module is imported, unless mamba_ssm has been imported already.

    Args:
        name: below the package, such as ``ops.triton.ssd_combined``.

    Raises:
        ImportError: mamba_ssm is not installed, or what the module needs is missing.
    """
    full = f"{MAMBA_SSM}.{name}"
    if full in sys.modules:
        return sys.modules[full]
    os.environ.setdefault(*EXACT_FLOAT32)
    if MAMBA_SSM in sys.modules:
        return importlib.import_module(full)
    spec = importlib.util.find_spec(MAMBA_SSM)
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError(f"No module named {MAMBA_SSM!r}", name=MAMBA_SSM)
    empty = ModuleType(MAMBA_SSM)
    empty.__path__ = list(spec.submodule_search_locations)
    sys.modules[MAMBA_SSM] = empty
    try:
        return importlib.import_module(full)
    finally:
        del sys.modules[MAMBA_SSM]


def _mamba_ssm_part(module: str) -> Part:
    try:
        mamba_ssm_module(module)
    except ImportError as error:
        return Part(TORCH, f"the package mamba-ssm cannot be imported ({error})", f"`{INSTALL}`")
    return Part(MAMBA_SSM)


def _convolution_part() -> Part:
    try:
        import causal_conv1d  # noqa: F401
    except ImportError as error:
        why = f"the package causal-conv1d cannot be imported ({error})"
    else:
        return Part(CAUSAL_CONV1D)
    try:
        import ocp_mamba.kernels.triton_conv  # noqa: F401
    except ImportError as error:
        return Part(TORCH, f"{why}, and neither can triton ({error})", f"`{INSTALL_CONV}`")
    return Part(TRITON, why, f"`{INSTALL_CONV}`")


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution and SiLU, as `ops.causal_conv1d`."""
    if parts()[CONVOLUTION].by == TRITON:
        from ocp_mamba.kernels import triton_conv

        return triton_conv.causal_conv1d(x, weight, bias)
    _check_width(weight)
    from causal_conv1d import causal_conv1d_fn

    channels_first = x.transpose(1, 2)
    if x.stride(2) != 1 or x.stride(0) % STRIDE or x.stride(1) % STRIDE:
        channels_first = channels_first.contiguous()
    return causal_conv1d_fn(channels_first, weight, bias, activation="silu").transpose(1, 2)


def steps_convolution() -> bool:
    """Whether one position of the convolution has a kernel: only causal_conv1d has."""
    return parts()[CONVOLUTION].by == CAUSAL_CONV1D


def conv_step(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One position of the convolution, as `step.conv_step`; ``conv_state`` is updated."""
    _check_width(weight)
    from causal_conv1d import causal_conv1d_update

    return causal_conv1d_update(x.to(conv_state), conv_state, weight, bias, activation="silu")


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk_size: int
) -> Tensor:
    """All positions at once, as `ops.ssd_scan`, in chunks of a power of two."""
    chunk_size = max(SMALLEST_CHUNK, 1 << (chunk_size - 1).bit_length())
    one_group = (B.unsqueeze(2), C.unsqueeze(2))
    return _scan_kernel()(x, dt, A, *one_group, chunk_size, D=D)


def _scan_kernel() -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = mamba_ssm_module(SCAN_MODULE).mamba_chunk_scan_combined
    return found


def ssm_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, ssm_state: Tensor
) -> Tensor:
    """One position of the scan, as `step.ssm_step`; ``ssm_state`` is updated.

    Values that are equal within a head are expanded, not copied: the kernel recognizes the strides
    and computes them once per head. The kernel reads the strides of ``dt_bias`` even where there is
    none, so a zero is passed.
    """
    H, P, N = ssm_state.shape[1:]
    y: Tensor = mamba_ssm_module(STEP_MODULE).selective_state_update(
        ssm_state,
        x,
        dt[..., None].expand(-1, -1, P),
        A[:, None, None].expand(H, P, N),
        B.unsqueeze(1),
        C.unsqueeze(1),
        D[:, None].expand(H, P),
        dt_bias=A.new_zeros(1, 1).expand(H, P),
        dt_softplus=False,
    )
    return y


def _check_width(weight: Tensor) -> None:
    if weight.shape[1] not in CONV_WIDTHS:
        raise ValueError(
            f"causal-conv1d has kernels for widths {', '.join(map(str, CONV_WIDTHS))}, not "
            f"{weight.shape[1]}; use backend 'torch'"
        )
