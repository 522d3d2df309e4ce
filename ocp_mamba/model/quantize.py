"""Smaller weights: matrices in bf16 or int8, what is stored of train in bf16, all else in float32.

Only the stored weights are smaller. Products are computed in float32 from the rounded weights, so
that the only loss of quality is that of rounding.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.kernels.products import are_few, inner_products

WEIGHTS = ("float32", "bf16", "int8")
INT8_MAX = 127

Model = TypeVar("Model", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear layer whose matrix is stored as bf16, or as int8 with one scale per row."""

    weight: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, weights: str) -> None:
        """Round the weights of ``linear`` to "bf16" or "int8"."""
        super().__init__()
        matrix, scale = linear.weight.detach(), None
        if weights == "bf16":
            packed = matrix.to(torch.bfloat16)
        else:
            largest = matrix.abs().amax(dim=1)
            scale = torch.where(largest > 0, largest, 1.0) / INT8_MAX
            packed = (matrix / scale[:, None]).round().to(torch.int8)
        self.register_buffer("weight", packed)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(..., d_out)`` from ``(..., d_in)``, computed in the precision of ``x``."""
        y = F.linear(x, self.weight.to(x.dtype))
        if self.scale is not None:
            y = y * self.scale
        return y if self.bias is None else y + self.bias


def linear(layer: nn.Linear | PackedLinear, x: Tensor) -> Tensor:
    """Apply a linear layer to ``(..., d_in)``; to few rows in a compiled step by sums."""
    if not are_few(x):
        return layer(x)
    y = inner_products(x, layer.weight)
    if isinstance(layer, PackedLinear) and layer.scale is not None:
        y = y * layer.scale
    return y if layer.bias is None else y + layer.bias


def quantize(model: Model, weights: str) -> Model:
    """Return a copy of a model for inference with its matrices stored as one of `WEIGHTS`.

    These matrices cannot be trained, and the copy cannot be saved as a ``.pt``: keep the float32
    model.

    Raises:
        ValueError: ``weights`` is none of `WEIGHTS`.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} is unknown; choose one of {', '.join(WEIGHTS)}")
    model = copy.deepcopy(model).eval()
    if weights != "float32":
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    setattr(module, name, PackedLinear(child, weights))
        memory_head = getattr(model, "memory_head", None)
        if memory_head is not None:
            memory_head.memory = memory_head.memory.to(torch.bfloat16)
        lookup = getattr(model, "lookup", None)
        if lookup is not None:
            lookup.vectors = lookup.vectors.to(torch.bfloat16)
    return model


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, the least that one step reads."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() for t in tensors)
