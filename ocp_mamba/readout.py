"""What a model recalls: the concepts that it was taught to answer with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig

FEW_ROWS = 4
"""As many queries as this are one new vector's, of a model's members."""


class Readout(nn.Module):
    """Moves predictions towards the mean of the remembered concepts that they are near to.

    With memory ``M (n, 768)``, temperature T and weight w, a unit row h becomes the direction of
    ``h + w * softmax(h M' / T) M``. The softmax says how likely each concept is to come next, and
    the mean over them is what a cosine wants: of all vectors, the direction of the expected next
    vector has the greatest expected cosine to it. h itself stays in, for what is not remembered.

    Source: Ramsauer et al., "Hopfield Networks is All You Need", 2021, equation 3 (one step of
    retrieval, from stored patterns that are not learnt).
    """

    memory: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Create a readout that remembers nothing: it leaves predictions as they are."""
        super().__init__()
        self.most = config.n_memory
        self.temperature, self.weight = config.readout_temperature, config.readout_weight
        self.register_buffer("memory", torch.zeros(0, config.d_vector))

    def remember(self, vectors: Tensor) -> None:
        """Remember unit rows ``(n, 768)`` in the place of all before.

        Raises:
            ValueError: they are more than the config allows, or of another width.
        """
        width = self.memory.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width or len(vectors) > self.most:
            raise ValueError(
                f"up to {self.most} rows of {width} can be remembered, got {tuple(vectors.shape)}"
            )
        self.memory = vectors.to(self.memory)

    def forward(self, queries: Tensor, temperature: float) -> Tensor:
        """Return what each query comes to, unit rows ``(..., 768)`` from ``(..., 768)``.

        ``temperature`` stands in for the config's: what a model is taught by.
        """
        if not len(self.memory):
            return queries
        recalled = self._likely(queries, temperature) @ self.memory.to(queries.dtype)
        return F.normalize(queries + self.weight * recalled.to(queries.dtype), dim=-1)

    def mixture(self, queries: Tensor) -> Tensor:
        """Return what M members' queries come to, unit rows ``(..., 768)`` from ``(M, ..., 768)``.

        The members' probabilities are averaged, and so are the queries: a member that is sure
        counts more than one that hedges.
        """
        mean = queries.mean(dim=0)
        if len(self.memory):
            likely = self._likely(queries, self.temperature).mean(dim=0)
            mean = mean + self.weight * (likely @ self.memory.to(likely.dtype)).to(mean.dtype)
        return F.normalize(mean, dim=-1)

    def _likely(self, queries: Tensor, temperature: float) -> Tensor:
        """How likely each remembered concept comes next, ``(..., n)``."""
        near = _inner_products(queries, self.memory.to(queries.dtype))
        return (near / temperature).softmax(dim=-1).to(queries.dtype)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take as many rows as are stored: how many is known only once a model is trained."""
        stored = state_dict.get(f"{prefix}memory")
        if isinstance(stored, Tensor) and stored.shape[1:] == self.memory.shape[1:]:
            self.memory = self.memory.new_empty(stored.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _inner_products(rows: Tensor, memory: Tensor) -> Tensor:
    """Return ``rows @ memory.T``, ``(..., n)`` from ``(..., 768)`` and ``(n, 768)``.

    Few rows on a CPU, compiled: written as sums, which the compiler turns into one loop over the
    memory; BLAS takes nearly twice as long.
    """
    width = rows.shape[-1]
    if rows.is_cuda or rows.numel() > FEW_ROWS * width or not torch.compiler.is_compiling():
        return rows @ memory.T
    # as_strided: of a tensor in memory, or it would be computed again for each row of the memory
    flat = rows.reshape(-1, width).contiguous()
    flat = flat.as_strided(flat.shape, (width, 1))
    return (memory[:, None] * flat).sum(dim=-1).T.reshape(*rows.shape[:-1], len(memory))
