"""The context lookup: what followed the train contexts that are most like the one at hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels.products import inner_products

BUFFERS = ("vectors", "steps")
"""Their sizes are known only after training."""


class ContextLookup(nn.Module):
    """Moves predictions towards the vectors that followed similar contexts in train.

    A stored step is a triple (a, b, c): in some train chain, concept c followed a and b. A context
    that ends in the unit rows x, y is compared with each of n steps by the mean of the two cosines
    ``s * cos(x, a) + (1 - s) * cos(y, b)``, where s is ``lookup_previous``. With temperature T and
    weight w, a prediction h becomes the direction of ``h + w * sum_i p_i c_i``, where p is the
    softmax of the n similarities over T. A concept without one before it has a zero row there.

    Source: Khandelwal et al., "Generalization through Memorization: Nearest Neighbor Language
    Models", 2020, equations 1 and 2; here the keys are the input vectors, and means of vectors are
    mixed in the place of probabilities.

    Attributes:
        vectors: unit rows ``(U + 1, 768)``, of the U concepts in the steps; row 0 is zero.
        steps: int64 ``(n, 3)``, rows of `vectors`; 0 stands for no concept before.
    """

    vectors: Tensor
    steps: Tensor

    def __init__(self, config: ModelConfig) -> None:
        """Create a lookup without steps, which does not change predictions."""
        super().__init__()
        self.max_steps = config.n_lookup
        self.temperature, self.weight = config.lookup_temperature, config.lookup_weight
        self.previous = config.lookup_previous
        self.register_buffer("vectors", torch.zeros(1, config.d_vector))
        self.register_buffer("steps", torch.zeros(0, 3, dtype=torch.long))

    def set_steps(self, vectors: Tensor, steps: Tensor) -> None:
        """Store steps, which replace all steps before.

        Args:
            vectors: unit rows ``(U, 768)``.
            steps: int64 ``(n, 3)``, indices of ``vectors``; -1 for no concept before.

        Raises:
            ValueError: there are more steps than the config allows, or shapes do not fit.
        """
        width = self.vectors.shape[1]
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise ValueError(f"rows of {width} can be stored, got {tuple(vectors.shape)}")
        if steps.ndim != 2 or steps.shape[1] != 3 or len(steps) > self.max_steps:
            raise ValueError(
                f"up to {self.max_steps} steps of 3 can be stored, got {tuple(steps.shape)}"
            )
        self.vectors = torch.cat([vectors.new_zeros(1, width), vectors]).to(self.vectors)
        self.steps = (steps + 1).to(self.steps)

    def forward(self, predictions: Tensor, last: Tensor, previous: Tensor) -> Tensor:
        """Return unit rows ``(..., 768)``.

        Args:
            predictions: unit rows ``(..., 768)``.
            last: ``(..., 768)``, of any length but zero, the last vector of each context.
            previous: likewise, the one before it; zero where there is none.
        """
        if not len(self.steps):
            return predictions
        before, at, after = self.steps.unbind(dim=1)
        # under autocast, bf16 would move a similarity by a tenth of the temperature
        with torch.autocast(predictions.device.type, enabled=False):
            cosines = [self._cosines(previous)[..., before], self._cosines(last)[..., at]]
            similarity = self.previous * cosines[0] + (1 - self.previous) * cosines[1]
            probs = (similarity / self.temperature).softmax(dim=-1)
            by_concept = probs.new_zeros(*probs.shape[:-1], len(self.vectors))
            by_concept = by_concept.index_add(-1, after, probs)
            found = by_concept @ self.vectors.to(by_concept.dtype)
            return F.normalize(predictions + self.weight * found, dim=-1).to(predictions.dtype)

    def _cosines(self, rows: Tensor) -> Tensor:
        """Cosines to all stored vectors, float32 ``(..., U + 1)``."""
        return inner_products(F.normalize(rows.float(), dim=-1), self.vectors)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take as many vectors and steps as the file has."""
        for name in BUFFERS:
            stored, here = state_dict.get(prefix + name), getattr(self, name)
            if isinstance(stored, Tensor) and stored.shape[1:] == here.shape[1:]:
                setattr(self, name, here.new_empty(stored.shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def previous_of(seq_vectors: Tensor) -> Tensor:
    """Return the vector before each position, ``(B, L, 768)``; zero before the first."""
    return F.pad(seq_vectors[:, :-1], (0, 0, 1, 0))


def last_two(seq_vectors: Tensor, lengths: Tensor | None, earlier: Tensor) -> tuple[Tensor, Tensor]:
    """Return the last valid vector of each sequence and the one before it, ``(B, 768)`` each.

    Args:
        seq_vectors: ``(B, L, 768)``, right-padded.
        lengths: ``(B,)``, valid positions of each row; None means L for all.
        earlier: ``(B, 768)``, the vector before each sequence; zero where there is none.
    """
    B, L = seq_vectors.shape[:2]
    ends = torch.full((B,), L, device=seq_vectors.device) if lengths is None else lengths.long()
    rows = torch.arange(B, device=seq_vectors.device)
    extended = torch.cat([earlier[:, None].to(seq_vectors.dtype), seq_vectors], dim=1)
    return extended[rows, ends], extended[rows, ends - 1]
