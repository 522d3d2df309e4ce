"""Products of a few rows with a large matrix, as quick as the matrix can be read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_mamba.model.quantize import PackedLinear

FEW_ROWS = 4
"""As many rows as this are one new vector's, of a model's members."""


def inner_products(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return ``rows @ matrix.T``, ``(..., n)`` from ``(..., D)`` and ``(n, D)``.

    Few rows on a CPU, compiled: written as sums, which the compiler turns into one loop that reads
    the matrix once, at the memory's speed. BLAS reaches half of it here.
    """
    width = rows.shape[-1]
    if rows.is_cuda or rows.numel() > FEW_ROWS * width or not torch.compiler.is_compiling():
        return rows @ matrix.to(rows.dtype).T
    # as_strided: of a tensor in memory. The compiler would compute what rows are made of again for
    # each row of the matrix.
    flat = rows.reshape(-1, width).contiguous()
    flat = flat.as_strided(flat.shape, (width, 1))
    sums = (matrix.to(rows.dtype)[:, None] * flat).sum(dim=-1)
    return sums.T.reshape(*rows.shape[:-1], len(matrix))


def linear(layer: nn.Linear | PackedLinear, x: Tensor) -> Tensor:
    """Apply a linear layer to ``(..., d_in)``; few rows on a CPU as `inner_products` does."""
    if x.is_cuda or x.numel() > FEW_ROWS * x.shape[-1] or not torch.compiler.is_compiling():
        return layer(x)
    y = inner_products(x, layer.weight)
    if isinstance(layer, PackedLinear) and layer.scale is not None:
        y = y * layer.scale
    return y if layer.bias is None else y + layer.bias
