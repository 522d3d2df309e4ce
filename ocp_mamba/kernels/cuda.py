"""The operations of a Mamba-2 mixer by the CUDA kernels of mamba_ssm and causal_conv1d.

Only this module imports both libraries, at the first operation on a CUDA tensor, never on a machine
without a GPU. Each function has the arguments, shapes and meaning of the function of the same name
in plain torch (`ops`, `step`), and only changes their order and layout.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

INSTALL = "pip install --no-build-isolation causal-conv1d mamba-ssm"
"""Both packages build against the installed torch and need CUDA's compiler nvcc."""

CONV_WIDTHS = (2, 3, 4)
"""Widths that causal_conv1d has kernels for."""
STRIDE = 8
"""causal_conv1d takes a channels-last input without a copy if its strides are multiples of 8."""


@functools.cache
def missing() -> str:
    """Return why the kernels cannot run, in a few words; empty where they can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    try:
        import causal_conv1d  # noqa: F401
    except ImportError as error:
        return f"the package causal-conv1d cannot be imported ({error})"
    try:
        from mamba_ssm.ops.triton import selective_state_update, ssd_combined  # noqa: F401
    except ImportError as error:
        return f"the package mamba-ssm cannot be imported ({error})"
    return ""


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution and SiLU, as `ops.causal_conv1d`."""
    _check_width(weight)
    from causal_conv1d import causal_conv1d_fn

    channels_first = x.transpose(1, 2)
    if x.stride(2) != 1 or x.stride(0) % STRIDE or x.stride(1) % STRIDE:
        channels_first = channels_first.contiguous()
    return causal_conv1d_fn(channels_first, weight, bias, activation="silu").transpose(1, 2)


def conv_step(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One position of the convolution, as `step.conv_step`; ``conv_state`` is updated."""
    _check_width(weight)
    from causal_conv1d import causal_conv1d_update

    return causal_conv1d_update(x.to(conv_state), conv_state, weight, bias, activation="silu")


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk_size: int
) -> Tensor:
    """All positions at once, as `ops.ssd_scan`."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    one_group = (B.unsqueeze(2), C.unsqueeze(2))
    return mamba_chunk_scan_combined(x, dt, A, *one_group, chunk_size, D=D)


def ssm_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, ssm_state: Tensor
) -> Tensor:
    """One position of the scan, as `step.ssm_step`; ``ssm_state`` is updated.

    Values that are equal within a head are expanded, not copied: the kernel recognizes the strides
    and computes them once per head. The kernel reads the strides of ``dt_bias`` even where there is
    none, so a zero is passed.
    """
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    H, P, N = ssm_state.shape[1:]
    return selective_state_update(
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


def _check_width(weight: Tensor) -> None:
    if weight.shape[1] not in CONV_WIDTHS:
        raise ValueError(
            f"causal-conv1d has kernels for widths {', '.join(map(str, CONV_WIDTHS))}, not "
            f"{weight.shape[1]}; use backend 'torch'"
        )
