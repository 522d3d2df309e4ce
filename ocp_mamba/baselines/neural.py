"""Baselines of the model's size that are trained as the model is: a GRU and a Transformer.

They show whether a result is due to the Mamba-2 layers, or whether any network with that number of
parameters reaches it with the same data, loss, batches, schedule, seed, memory head and context
lookup. Neither takes TMD vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import D_VECTOR, ModelConfig
from ocp_mamba.kernels.cosine import normalize
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.context_lookup import ContextLookup
from ocp_mamba.model.mamba2 import RMSNorm
from ocp_mamba.model.memory_head import MemoryHead

GRU_LAYERS = 2
HEAD_WIDTH = 64
POSITION_BASE = 10_000.0
MEMORY_SETTINGS = ("n_memory", "memory_temperature", "memory_weight")
LOOKUP_SETTINGS = ("n_lookup", "lookup_temperature", "lookup_weight", "lookup_previous")

Settings = Mapping[str, Any]
NONE: Settings = MappingProxyType({})


class GRUBaseline(NextVectorModel):
    """A stack of GRU layers between concept vectors, then a norm and a linear map to 768.

    Source: Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder", 2014.
    """

    def __init__(
        self,
        width: int,
        dropout: float = 0.0,
        memory_head: Settings = NONE,
        lookup: Settings = NONE,
    ) -> None:
        """Create two layers of ``width`` units with freshly drawn weights."""
        super().__init__()
        self.width = width
        self.settings = {
            "width": width,
            "dropout": dropout,
            "memory_head": dict(memory_head),
            "lookup": dict(lookup),
        }
        self.memory_head, self.lookup = _memory_head(memory_head), _lookup(lookup)
        self.gru = nn.GRU(D_VECTOR, width, GRU_LAYERS, batch_first=True, dropout=dropout)
        self.norm = RMSNorm(width)
        self.output = _linear(width, D_VECTOR)

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(1, B, L, 768)`` unit rows from ``(B, L, 768)``; ``tmd`` is not used."""
        hidden, _ = self.gru(_components_of_size_one(seq_vectors))
        return normalize(self.output(self.norm(hidden)), seq_vectors.dtype)[None]


class TransformerLayer(nn.Module):
    """Pre-norm causal self-attention and a GELU network, each with a residual."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        """Create a layer of heads of 64 (one head where the width is no multiple of that)."""
        super().__init__()
        self.heads = _heads(width)
        self.norm_attention, self.norm_network = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = _linear(width, 3 * width), _linear(width, width)
        self.network = nn.Sequential(_linear(width, hidden), nn.GELU(), _linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(B, L, width)`` from ``(B, L, width)``; position t sees positions <= t."""
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        attended = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=True
        )
        x = x + self.dropout(self.project(attended.transpose(1, 2).flatten(-2)))
        return x + self.dropout(self.network(self.norm_network(x)))


class TransformerBaseline(NextVectorModel):
    """A causal Transformer between concept vectors, with sinusoids for the positions.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5 for the positions;
    norms are applied before the sub-layers.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        n_layers: int,
        dropout: float = 0.0,
        memory_head: Settings = NONE,
        lookup: Settings = NONE,
    ) -> None:
        """Create ``n_layers`` layers of ``width`` with networks of ``hidden`` units."""
        super().__init__()
        self.width, self.hidden = width, hidden
        self.settings = {
            "width": width,
            "hidden": hidden,
            "n_layers": n_layers,
            "dropout": dropout,
            "memory_head": dict(memory_head),
            "lookup": dict(lookup),
        }
        self.memory_head, self.lookup = _memory_head(memory_head), _lookup(lookup)
        self.input = nn.Identity() if width == D_VECTOR else _linear(D_VECTOR, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, hidden, dropout) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = _linear(width, D_VECTOR)

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(1, B, L, 768)`` unit rows from ``(B, L, 768)``; ``tmd`` is not used."""
        x = self.input(_components_of_size_one(seq_vectors))
        x = x + positions(seq_vectors.shape[1], self.width).to(x)
        for layer in self.layers:
            x = layer(x)
        return normalize(self.output(self.norm(x)), seq_vectors.dtype)[None]


def positions(length: int, width: int) -> Tensor:
    """Sines and cosines of each position at geometric wavelengths, float32 ``(length, width)``."""
    half = (width + 1) // 2
    rates = POSITION_BASE ** (-torch.arange(half) / half)
    angles = torch.arange(length)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]


def gru_of_size(config: ModelConfig, parameters: int) -> GRUBaseline:
    """Return the GRU with the width that is nearest to a number of parameters."""
    width = _nearest(lambda w: GRUBaseline(w), parameters)
    return GRUBaseline(width, config.dropout, *_additions(config))


def transformer_of_size(config: ModelConfig, parameters: int) -> TransformerBaseline:
    """Return a Transformer with the model's depth and about that number of parameters.

    Its width is the model's, or less where the networks would be narrower than the layers; the
    width of the networks is then the one that is nearest to the number.
    """
    width, additions = config.d_model, _additions(config)

    def make(hidden: int) -> TransformerBaseline:
        return TransformerBaseline(width, hidden, config.n_layers, config.dropout, *additions)

    while (hidden := _nearest(make, parameters)) < width and width > HEAD_WIDTH:
        width -= HEAD_WIDTH
    return make(hidden)


TRAINED_BASELINES: dict[str, Callable[[ModelConfig, int], NextVectorModel]] = {
    "gru": gru_of_size,
    "transformer": transformer_of_size,
}
"""Builders by the name in metrics and runs, from a model's config and number of parameters."""

BASELINE_CLASSES: dict[str, type[GRUBaseline | TransformerBaseline]] = {
    "gru": GRUBaseline,
    "transformer": TransformerBaseline,
}
"""Classes by the same names; a model's ``settings`` are the arguments of its class."""


def _additions(config: ModelConfig) -> tuple[Settings, Settings]:
    """The settings of the memory head and of the lookup of a model; its baselines get the same."""

    def settings(names: tuple[str, ...]) -> Settings:
        return (
            {name: getattr(config, name) for name in names} if getattr(config, names[0]) else NONE
        )

    return settings(MEMORY_SETTINGS), settings(LOOKUP_SETTINGS)


def _memory_head(settings: Settings) -> MemoryHead | None:
    return MemoryHead(ModelConfig(**settings)) if settings else None


def _lookup(settings: Settings) -> ContextLookup | None:
    return ContextLookup(ModelConfig(**settings)) if settings else None


def _nearest(make: Callable[[int], NextVectorModel], parameters: int) -> int:
    """The width, 1 or more, whose model is nearest to a number of parameters."""

    def count(width: int) -> int:
        with torch.device("meta"):  # shapes without values: nothing is allocated or drawn
            return make(width).num_parameters()

    low, high = 1, 2
    while count(high) < parameters:
        high *= 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - parameters))


def _heads(width: int) -> int:
    return width // HEAD_WIDTH if width % HEAD_WIDTH == 0 else 1


def _linear(width_in: int, width_out: int) -> nn.Linear:
    linear = nn.Linear(width_in, width_out)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _components_of_size_one(seq_vectors: Tensor) -> Tensor:
    return F.normalize(seq_vectors, dim=-1) * math.sqrt(D_VECTOR)
