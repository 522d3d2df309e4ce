"""The interface of a model to training and evaluation, and its optional inputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.model.context_lookup import ContextLookup, previous_of
from ocp_mamba.model.memory_head import MemoryHead


class NextVectorModel(nn.Module):
    """A model that predicts the next vector at every position.

    It may have several members; each has its own loss, and `predict_all` combines their
    predictions.
    """

    d_tmd: int = 0
    """Width of the TMD vector that the model takes; 0 for none."""

    n_relations: int = 0
    """Number of relations that the model has embeddings of; 0 for a model that takes none."""

    def __init__(self) -> None:
        """Create a model without a memory head and without a context lookup."""
        super().__init__()
        self.memory_head: MemoryHead | None = None
        self.lookup: ContextLookup | None = None

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(B, L, 768)`` unit rows from ``(B, L, 768)``; row t sees positions <= t."""
        return self.look_up(self.combine(self.predict_members(seq_vectors, tmd)), seq_vectors)

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return what each of M members predicts, ``(M, B, L, 768)`` unit rows; M may be 1."""
        raise NotImplementedError(f"{type(self).__name__} has no predict_members")

    def combine(self, members: Tensor) -> Tensor:
        """Return the model's prediction, ``(..., 768)``, from its members', ``(M, ..., 768)``."""
        if self.memory_head is not None:
            return self.memory_head.mixture(members)
        if len(members) == 1:
            return members[0]
        return F.normalize(members.mean(dim=0), dim=-1)

    def look_up(self, predictions: Tensor, seq_vectors: Tensor) -> Tensor:
        """Return predictions ``(B, L, 768)`` after the context lookup; see `ContextLookup`."""
        if self.lookup is None:
            return predictions
        mixed: Tensor = self.lookup(predictions, seq_vectors, previous_of(seq_vectors))
        return mixed

    def read_memory(self, members: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Return each member's prediction after the memory head; see `MemoryHead.forward`."""
        if self.memory_head is None:
            return members, None
        read: tuple[Tensor, Tensor | None] = self.memory_head(members, temperature)
        return read

    def num_parameters(self) -> int:
        """Return the number of parameters."""
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


def conditions(
    predictor: object, tmd: Tensor | None, relations: Tensor | None
) -> dict[str, Tensor]:
    """Return the arguments of ``predict_all``, beside the vectors, that a predictor takes.

    Args:
        predictor: anything with ``predict_all``; it takes what its attributes ``d_tmd`` and
            ``n_relations`` switch on, see `NextVectorModel`.
        tmd: ``(B, 16)`` or None for data without TMD codes.
        relations: ``(B, L, 2)`` or None for data without relations.
    """
    arguments = {}
    if tmd is not None and getattr(predictor, "d_tmd", False):
        arguments["tmd"] = tmd
    if relations is not None and getattr(predictor, "n_relations", False):
        arguments["relations"] = relations
    return arguments


def check_lengths(lengths: Tensor, B: int, L: int) -> None:
    """Refuse lengths of B rows that are not in 1..L.

    Raises:
        ValueError: the shape is not ``(B,)``, or a length is out of range.
    """
    if lengths.shape != (B,) or int(lengths.min()) < 1 or int(lengths.max()) > L:
        raise ValueError(
            f"lengths must hold {B} numbers from 1 to {L}, got shape {tuple(lengths.shape)} "
            f"with values {int(lengths.min())} to {int(lengths.max())}"
        )
