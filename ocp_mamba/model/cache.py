"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LayerState:
    """Memory of one layer; names and shapes are mamba_ssm's.

    Attributes:
        conv_state: ``(B, d_inner + 2 * d_state, d_conv)``, the convolution's last inputs.
        ssm_state: ``(B, H, P, N)``.
    """

    conv_state: Tensor
    ssm_state: Tensor


@dataclass(frozen=True)
class InferenceCache:
    """What a model remembers of B sequences. Passes update its tensors in place."""

    layers: tuple[LayerState, ...]

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return len(self.layers[0].ssm_state)

    def reset(self) -> None:
        """Forget every sequence."""
        for layer in self.layers:
            layer.conv_state.zero_()
            layer.ssm_state.zero_()

    def restore(self, other: InferenceCache) -> None:
        """Remember what another cache of as many sequences does."""
        for layer, source in zip(self.layers, other.layers, strict=True):
            layer.conv_state.copy_(source.conv_state)
            layer.ssm_state.copy_(source.ssm_state)

    def select(self, rows: Tensor) -> InferenceCache:
        """Return a new cache of some of the sequences, by row number or boolean ``(B,)``."""
        return InferenceCache(
            tuple(LayerState(s.conv_state[rows], s.ssm_state[rows]) for s in self.layers)
        )
