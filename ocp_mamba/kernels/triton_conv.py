"""The convolution of a Mamba-2 mixer as two Triton kernels, which need no compiler of CUDA.

Triton comes with torch's CUDA builds; only `kernels.cuda` imports this module, where it is used. A
program computes a tile of positions and channels: forward the sum over the K earlier positions and
SiLU, backward the same again for the K later positions that a position contributes to.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

POSITIONS, CHANNELS = 16, 64
"""Positions and channels of a tile."""


@triton.jit
def _weighted(x, weight, bias, positions, channels, inside, L, stride, K: tl.constexpr):  # type: ignore[no-untyped-def]
    """The sums before SiLU, ``(positions, channels)``, in float32."""
    total = tl.zeros([positions.shape[0], channels.shape[0]], tl.float32)
    total += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(K):
        at = positions - (K - 1 - k)
        w = tl.load(weight + channels * K + k, mask=inside, other=0.0).to(tl.float32)
        there = (at >= 0)[:, None] & (at < L)[:, None] & inside[None, :]
        value = tl.load(x + at[:, None] * stride + channels[None, :], mask=there, other=0.0)
        total += value.to(tl.float32) * w[None, :]
    return total


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    x, weight, bias, y, L, C, x_batch, x_length,
    K: tl.constexpr, TILE_L: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """One tile of the output; the grid is (tiles of positions, tiles of channels, batch)."""
    batch = tl.program_id(2).to(tl.int64)
    positions = tl.program_id(0) * TILE_L + tl.arange(0, TILE_L)
    channels = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    inside = channels < C
    total = _weighted(
        x + batch * x_batch, weight, bias, positions, channels, inside, L, x_length, K
    )
    out = total * tl.sigmoid(total)
    places = y + batch * L * C + positions[:, None] * C + channels[None, :]
    tl.store(places, out.to(y.dtype.element_ty), mask=(positions < L)[:, None] & inside[None, :])


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    x, weight, bias, dy, dx, partial, L, C, x_batch, x_length,
    K: tl.constexpr, TILE_L: tl.constexpr, TILE_C: tl.constexpr,
):  # fmt: skip
    """One tile of dx, and the tile's part of the gradients of weight (K rows) and bias (one)."""
    batch = tl.program_id(2).to(tl.int64)
    positions = tl.program_id(0) * TILE_L + tl.arange(0, TILE_L)
    channels = tl.program_id(1) * TILE_C + tl.arange(0, TILE_C)
    inside = channels < C
    x += batch * x_batch
    dy += batch * L * C
    part = partial + (batch * tl.num_programs(0) + tl.program_id(0)) * (K + 1) * C + channels
    total_dx = tl.zeros([TILE_L, TILE_C], tl.float32)
    for later in tl.static_range(K):
        at = positions + later
        there = (at < L)[:, None] & inside[None, :]
        total = _weighted(x, weight, bias, at, channels, inside, L, x_length, K)
        gate = tl.sigmoid(total)
        given = tl.load(dy + at[:, None] * C + channels[None, :], mask=there, other=0.0)
        dtotal = given.to(tl.float32) * gate * (1 + total * (1 - gate))
        w = tl.load(weight + channels * K + (K - 1 - later), mask=inside, other=0.0)
        total_dx += dtotal * w.to(tl.float32)[None, :]
        if later == 0:
            for k in tl.static_range(K):
                before = positions - (K - 1 - k)
                known = (before >= 0)[:, None] & there
                value = tl.load(
                    x + before[:, None] * x_length + channels[None, :], mask=known, other=0.0
                )
                tl.store(part + k * C, tl.sum(dtotal * value.to(tl.float32), 0), mask=inside)
            tl.store(part + K * C, tl.sum(dtotal, 0), mask=inside)
    places = dx + batch * L * C + positions[:, None] * C + channels[None, :]
    mask = (positions < L)[:, None] & inside[None, :]
    tl.store(places, total_dx.to(dx.dtype.element_ty), mask=mask)


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution and SiLU, as `ops.causal_conv1d`, in the dtype of ``x``."""
    return _Convolution.apply(x if x.stride(2) == 1 else x.contiguous(), weight, bias)


def _grid(x: Tensor) -> tuple[int, int, int]:
    """The number of tiles of positions and of channels, and the batch."""
    B, L, C = x.shape
    return triton.cdiv(L, POSITIONS), triton.cdiv(C, CHANNELS), B


class _Convolution(torch.autograd.Function):
    """The two kernels as one differentiable operation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        weight, bias = weight.contiguous(), bias.contiguous()
        (B, L, C), grid = x.shape, _grid(x)
        y = x.new_empty(B, L, C)
        _forward[grid](
            x, weight, bias, y, L, C, x.stride(0), x.stride(1),
            K=weight.shape[1], TILE_L=POSITIONS, TILE_C=CHANNELS,
        )  # fmt: skip
        ctx.save_for_backward(x, weight, bias)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight, bias = ctx.saved_tensors
        (B, L, C), K, grid = x.shape, weight.shape[1], _grid(x)
        dx = x.new_empty(B, L, C)
        partial = torch.empty(B * grid[0], K + 1, C, device=x.device, dtype=torch.float32)
        _backward[grid](
            x, weight, bias, dy.contiguous(), dx, partial, L, C, x.stride(0), x.stride(1),
            K=K, TILE_L=POSITIONS, TILE_C=CHANNELS,
        )  # fmt: skip
        total = partial.sum(dim=0)
        return dx, total[:K].T.to(weight.dtype), total[K].to(bias.dtype)
