"""Products of a few rows with a large matrix, bounded by the memory bandwidth."""

from __future__ import annotations

import torch
from torch import Tensor

FEW_ROWS = 4
"""Most rows of one position: one per member of the model."""


def are_few(rows: Tensor) -> bool:
    """Say whether `inner_products` of these rows, ``(..., D)``, takes the way for few rows."""
    few = not rows.is_cuda and rows.numel() <= FEW_ROWS * rows.shape[-1]
    return few and torch.compiler.is_compiling()


def inner_products(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return ``rows @ matrix.T``, ``(..., n)`` from ``(..., D)`` and ``(n, D)``.

    For few rows on a CPU, in a compiled step, the product is written as sums, which torch's
    compiler turns into one loop that reads the matrix once. BLAS takes twice as long here.
    """
    width = rows.shape[-1]
    if not are_few(rows):
        return rows @ matrix.to(rows.dtype).T
    # as_strided makes the compiler store the rows; else it computes them again for each row of the
    # matrix.
    flat = rows.reshape(-1, width).contiguous()
    flat = flat.as_strided(flat.shape, (width, 1))
    sums = (matrix.to(rows.dtype)[:, None] * flat).sum(dim=-1)
    return sums.T.reshape(*rows.shape[:-1], len(matrix))
