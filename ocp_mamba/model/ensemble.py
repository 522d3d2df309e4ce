"""A model with several stacks of Mamba-2 layers side by side, with or without a memory head."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.cache import InferenceCache, LayerState
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.memory_head import MemoryHead

T = TypeVar("T")


class EnsembleLVM(OCPMambaLVM):
    """``members`` stacks of layers with one input and one output layer, maybe with a memory head.

    Each stack reads the same input and has its own loss, and the prediction is the direction of
    their mean, which lies between their predictions where they disagree. The parameters and their
    names are those of an `OCPMambaLVM` with as many layers.

    Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles", 2017; here the members share the output layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create a model with freshly drawn weights and an empty memory head."""
        super().__init__(config)
        if config.n_memory:
            self.memory_head = MemoryHead(config)

    def predict_members(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, **conditions: Tensor | None
    ) -> Tensor:
        """Return what each of M members predicts, ``(M, B, L, 768)`` unit rows.

        Arguments and errors are those of `predict_all`.
        """
        self.check(seq_vectors, tmd, None, **conditions)
        x = self.embed(seq_vectors, tmd, **conditions)
        return torch.stack([self.run_layers(x, stack) for stack in self.stacks(list(self.layers))])

    def predict_all(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, **conditions: Tensor | None
    ) -> Tensor:
        """Return the members' combined prediction, ``(B, L, 768)``; see `OCPMambaLVM`."""
        return self.combine(self.predict_members(seq_vectors, tmd, **conditions))

    def predict_after(self, x: Tensor, cache: InferenceCache, lengths: Tensor | None) -> Tensor:
        """Return ``(B, 768)`` after the last valid position, combined from all members."""
        members = [
            self.prefill_layers(x, stack, states, lengths)
            for stack, states in self._stacks_with_states(cache)
        ]
        return self.combine(torch.stack(members))

    def predict_next(self, x: Tensor, cache: InferenceCache) -> Tensor:
        """Return ``(B, 768)`` after one more position, combined from all members."""
        members = [
            self.step_layers(x, stack, states) for stack, states in self._stacks_with_states(cache)
        ]
        return self.combine(self.head(torch.stack(members)))

    def stacks(self, each_layer: Sequence[T]) -> Iterator[Sequence[T]]:
        """Yield each member's part of a sequence that has one item per layer."""
        start = 0
        for depth in self.config.depths:
            yield each_layer[start : start + depth]
            start += depth

    def _stacks_with_states(
        self, cache: InferenceCache
    ) -> Iterator[tuple[Sequence[nn.Module], Sequence[LayerState]]]:
        return zip(self.stacks(list(self.layers)), self.stacks(cache.layers), strict=True)
