"""Directions of rows, with gradients that take few passes over memory.

What `torch.nn.functional` gives is composed of simple operations, and its gradient of more of them,
each of which reads and writes all rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

SHORTEST = 1e-12
"""Shorter rows are divided by this."""


def normalize(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return rows ``(..., D)`` of length 1, as `torch.nn.functional.normalize` does.

    Args:
        rows: of any lengths.
        dtype: what they are computed and given in; None for their own.
    """
    if torch.is_grad_enabled() and rows.requires_grad:
        return _Normalize.apply(rows, dtype or rows.dtype)
    return F.normalize(rows if dtype is None else rows.to(dtype), dim=-1)


def cosine_to(targets: Tensor, rows: Tensor) -> Tensor:
    """Return the cosine of each of rows ``(..., M, D)`` and its target, ``(M, D)``: ``(..., M)``.

    No gradient goes to the targets.
    """
    return _CosineTo.apply(targets.expand_as(rows), rows)


class _Normalize(torch.autograd.Function):
    """``x / |x|``; what of a gradient lies along the row is lost, the rest divided by ``|x|``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tensor:
        length = _lengths(x, dtype)
        out = x / length
        ctx.save_for_backward(out, length)
        ctx.dtype = x.dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        out, length = ctx.saved_tensors
        along = torch.linalg.vecdot(dout, out)[..., None]
        return torch.addcmul(dout, out, along, value=-1).div_(length).to(ctx.dtype), None


class _CosineTo(torch.autograd.Function):
    """``t.x / (|t| |x|)``; its gradient is ``(t / |t| - cosine x / |x|) / |x|``."""

    @staticmethod
    def forward(ctx: Any, targets: Tensor, x: Tensor) -> Tensor:
        length, theirs = _lengths(x, x.dtype), _lengths(targets, x.dtype)
        found = torch.linalg.vecdot(targets, x)[..., None] / (length * theirs)
        ctx.save_for_backward(targets, x, length, theirs, found)
        return found.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dfound: Tensor) -> tuple[None, Tensor]:
        targets, x, length, theirs, found = ctx.saved_tensors
        share = dfound[..., None] / length
        return None, (targets * (share / theirs)).addcmul_(x, share * found / length, value=-1)


def _lengths(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """``(..., 1)``, what rows ``(..., D)`` are divided by."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=dtype).clamp_min(SHORTEST)
