"""Normalization and cosine of rows, with gradients that take few passes over memory.

The versions of `torch.nn.functional` are composed of simple operations, and so are their gradients;
each operation reads and writes all rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

MIN_LENGTH = 1e-12
"""Rows that are shorter are divided by this."""


def normalize(rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return rows ``(..., D)`` of length 1, as `torch.nn.functional.normalize` does.

    Args:
        rows: of any lengths.
        dtype: of the computation and of the result; None for that of the rows.
    """
    if torch.is_grad_enabled() and rows.requires_grad:
        return _Normalize.apply(rows, dtype or rows.dtype)
    return F.normalize(rows if dtype is None else rows.to(dtype), dim=-1)


def cosine_to(targets: Tensor, rows: Tensor) -> Tensor:
    """Return the cosines ``(..., M)`` of rows ``(..., M, D)`` to targets ``(M, D)``.

    The targets get no gradient.
    """
    return _CosineTo.apply(targets.expand_as(rows), rows)


class _Normalize(torch.autograd.Function):
    """``x / |x|``; its gradient is the part orthogonal to ``x``, divided by ``|x|``."""

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
        length, target_length = _lengths(x, x.dtype), _lengths(targets, x.dtype)
        cosine = torch.linalg.vecdot(targets, x)[..., None] / (length * target_length)
        ctx.save_for_backward(targets, x, length, target_length, cosine)
        return cosine.squeeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dcosine: Tensor) -> tuple[None, Tensor]:
        targets, x, length, target_length, cosine = ctx.saved_tensors
        scale = dcosine[..., None] / length
        dx = targets * (scale / target_length)
        return None, dx.addcmul_(x, scale * cosine / length, value=-1)


def _lengths(rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Lengths ``(..., 1)`` of rows ``(..., D)``, at least `MIN_LENGTH`."""
    return torch.linalg.vector_norm(rows, dim=-1, keepdim=True, dtype=dtype).clamp_min(MIN_LENGTH)
