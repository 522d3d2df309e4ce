"""Stacks of Mamba-2 layers side by side, with or without a memory head and a context lookup."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.cache import InferenceCache, LayerState
from ocp_mamba.model.context_lookup import ContextLookup, last_two
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.memory_head import MemoryHead

T = TypeVar("T")


class EnsembleLVM(OCPMambaLVM):
    """``members`` stacks of layers with one input and one output layer.

    It may have a memory head and a context lookup, which has the last word on a prediction.

    Each stack reads the same input and has its own loss, and the prediction is the direction of
    their mean, which lies between their predictions where they disagree. The parameters and their
    names are those of an `OCPMambaLVM` with as many layers.

    Source: Lakshminarayanan et al., "Simple and Scalable Predictive Uncertainty Estimation using
    Deep Ensembles", 2017; here the members share the output layer.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create a model with freshly drawn weights, whose memory head and lookup are empty."""
        super().__init__(config)
        if config.n_memory:
            self.memory_head = MemoryHead(config)
        if config.n_lookup:
            self.lookup = ContextLookup(config)

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
        members = self.predict_members(seq_vectors, tmd, **conditions)
        return self.look_up(self.combine(members), seq_vectors)

    def allocate_inference_cache(self, batch: int) -> InferenceCache:
        """Return a cache for ``batch`` sequences that are still empty."""
        cache = super().allocate_inference_cache(batch)
        if self.lookup is None:
            return cache
        like = self.norm_f.weight.detach()
        return cache._replace(last=like.new_zeros(batch, self.config.d_vector))

    @torch.no_grad()
    def prefill(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        lengths: Tensor | None = None,
        **conditions: Tensor | None,
    ) -> Tensor:
        """Append ``(B, L, 768)`` to the cached sequences; see `OCPMambaLVM.prefill`."""
        predicted = super().prefill(seq_vectors, tmd, cache, lengths, **conditions)
        if self.lookup is None or cache.last is None:
            return predicted
        last, previous = last_two(seq_vectors, lengths, cache.last)
        cache.last.copy_(last)
        mixed: Tensor = self.lookup(predicted, last, previous)
        return mixed

    def step_unchecked(
        self,
        vector: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache,
        **conditions: Tensor | None,
    ) -> Tensor:
        """Append a vector to each sequence; see `OCPMambaLVM.step_unchecked`."""
        predicted = super().step_unchecked(vector, tmd, cache, **conditions)
        if self.lookup is None or cache.last is None:
            return predicted
        mixed: Tensor = self.lookup(predicted, vector, cache.last)
        cache.last.copy_(vector)
        return mixed

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
