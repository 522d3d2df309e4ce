"""TODO."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.model.memory_head import MemoryHead


class NextVectorModel(nn.Module):
    """What the training loop needs of a model: its predictions, and which parameters decay.

    What its members predict is taught; `predict_all` is what they come to, and what is evaluated.
    """

    d_tmd: int = 0
    """Width of the TMD vector it is conditioned on; 0 for none."""
    n_relations: int = 0
    """Number of relations that it knows; 0 for a model that takes none."""

    def __init__(self) -> None:
        """Create a model that remembers nothing."""
        super().__init__()
        self.memory_head: MemoryHead | None = None

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return what each of M members predicts, ``(M, B, L, 768)`` unit rows; M may be 1."""
        raise NotImplementedError(f"{type(self).__name__} has no predict_members")

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(B, L, 768)`` unit rows from ``(B, L, 768)``; row t sees positions <= t."""
        return self.conclude(self.predict_members(seq_vectors, tmd))

    def conclude(self, members: Tensor) -> Tensor:
        """Return the model's prediction, ``(..., 768)``, from its members', ``(M, ..., 768)``."""
        return (
            mean_direction(members)
            if self.memory_head is None
            else self.memory_head.mixture(members)
        )

    def read_memory(self, members: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Return what each member's prediction comes to by what is remembered; see `MemoryHead`."""
        if self.memory_head is None:
            return members, None
        retrieved: tuple[Tensor, Tensor | None] = self.memory_head(members, temperature)
        return retrieved

    def num_parameters(self) -> int:
        """Return the number of trainable numbers."""
        return sum(p.numel() for p in self.parameters())

    def decay_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Split the parameters into those that take weight decay (matrices) and those that do not.

        Biases, norms, convolutions, ``dt_bias``, ``A_log`` and ``D`` take none.
        """
        decay: list[nn.Parameter] = []
        no_decay: list[nn.Parameter] = []
        for p in self.parameters():
            (decay if p.ndim == 2 else no_decay).append(p)
        return decay, no_decay


def mean_direction(predictions: Tensor) -> Tensor:
    """Return the direction of the mean of M members' unit rows, ``(..., 768)``.

    Args:
        predictions: ``(M, ..., 768)``; with M = 1 they are returned as they are.
    """
    if len(predictions) == 1:
        return predictions[0]
    return F.normalize(predictions.mean(dim=0), dim=-1)
