"""Products of a few rows with a large matrix, bounded by the memory bandwidth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ocp_mamba.model.quantize import PackedLinear

FEW_ROWS = 4
"""Most rows of one position: one per member of the model."""


def inner_products(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return ``rows @ matrix.T``, ``(..., n)`` from ``(..., D)`` and ``(n, D)``.

    For few rows on a CPU, in a compiled step, the product is written as sums, which torch's
    compiler turns into one loop that reads the matrix once. BLAS takes twice as long here.
    """
    width = rows.shape[-1]
    if rows.is_cuda or rows.numel() > FEW_ROWS * width or not torch.compiler.is_compiling():
        return rows @ matrix.to(rows.dtype).T
    # as_strided makes the compiler store the rows; else it computes them again for each row of the
    # matrix.
    flat = rows.reshape(-1, width).contiguous()
    flat = flat.as_strided(flat.shape, (width, 1))
    sums = (matrix.to(rows.dtype)[:, None] * flat).sum(dim=-1)
    return sums.T.reshape(*rows.shape[:-1], len(matrix))


def linear(layer: nn.Linear | PackedLinear, x: Tensor) -> Tensor:
    """Apply a linear layer to ``(..., d_in)``; few rows on a CPU by `inner_products`."""
    if x.is_cuda or x.numel() > FEW_ROWS * x.shape[-1] or not torch.compiler.is_compiling():
        return layer(x)
    y = inner_products(x, layer.weight)
    if isinstance(layer, PackedLinear) and layer.scale is not None:
        y = y * layer.scale
    return y if layer.bias is None else y + layer.bias
