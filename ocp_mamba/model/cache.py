"""The state of a model between two positions of a sequence; its size does not grow."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerState(NamedTuple):
    """State of one layer; names and shapes are mamba_ssm's.

    Attributes:
        conv_state: ``(B, d_inner + 2 * d_state, d_conv)``, the convolution's last inputs.
        ssm_state: ``(B, H, P, N)``.
    """

    conv_state: Tensor
    ssm_state: Tensor


class InferenceCache(NamedTuple):
    """The states of all layers, of B sequences. `prefill` and `step` update them in place.

    Attributes:
        layers: the state of each layer.
        last: ``(B, 768)``, the last vector of each sequence, zero before the first; only of a model
            with a context lookup.
    """

    layers: tuple[LayerState, ...]
    last: Tensor | None = None

    @property
    def batch(self) -> int:
        """Number of sequences, B."""
        return len(self.layers[0].ssm_state)

    def reset(self) -> None:
        """Set every state to zero, as before the first position."""
        for tensor in self.tensors():
            tensor.zero_()

    def restore(self, other: InferenceCache) -> None:
        """Copy the states of another cache with as many sequences."""
        for tensor, source in zip(self.tensors(), other.tensors(), strict=True):
            tensor.copy_(source)

    def select(self, rows: Tensor) -> InferenceCache:
        """Return a new cache of some of the sequences, by row number or boolean ``(B,)``."""
        return InferenceCache(
            tuple(LayerState(s.conv_state[rows], s.ssm_state[rows]) for s in self.layers),
            None if self.last is None else self.last[rows],
        )

    def tensors(self) -> list[Tensor]:
        """Return every tensor, layer by layer."""
        states = [tensor for layer in self.layers for tensor in layer]
        return states if self.last is None else [*states, self.last]
