"""What training asks of any model, and what a model is told beside the vectors.

That is TMD codes and the relations between concepts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.readout import Readout


class NextVectorModel(nn.Module):
    """What the training loop needs of a model: its predictions, and which parameters decay.

    What its members predict is taught; `predict_all` is what they come to, and what is judged.
    """

    d_tmd: int = 0
    """Width of the TMD vector it is conditioned on; 0 for none."""
    n_relations: int = 0
    """Number of relations that it knows; 0 for a model that takes none."""

    def __init__(self) -> None:
        """Create a model that remembers nothing."""
        super().__init__()
        self.readout: Readout | None = None

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return what each of M members predicts, ``(M, B, L, 768)`` unit rows; M may be 1."""
        raise NotImplementedError(f"{type(self).__name__} has no predict_members")

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(B, L, 768)`` unit rows from ``(B, L, 768)``; row t sees positions <= t."""
        return self.conclude(self.predict_members(seq_vectors, tmd))

    def conclude(self, members: Tensor) -> Tensor:
        """Return the model's prediction, ``(..., 768)``, from its members', ``(M, ..., 768)``."""
        return mean_direction(members) if self.readout is None else self.readout.mixture(members)

    def recall(self, members: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Return what each member's prediction comes to by what is remembered; see `Readout`."""
        if self.readout is None:
            return members, None
        recalled: tuple[Tensor, Tensor | None] = self.readout(members, temperature)
        return recalled

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


class RelationAdapter(nn.Module):
    """What relations add to the residual stream.

    The embedding of a relation's number and its confidence, side by side, mapped linearly. An
    unknown relation (number 0, confidence 0) adds nothing, and before training none does.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create an embedding of each of the config's relations, and a map that starts at zero."""
        super().__init__()
        self.embedding = nn.Embedding(len(config.relations) + 1, config.d_relation, padding_idx=0)
        self.adapter = nn.Linear(config.d_relation + 1, config.d_model, bias=False)
        nn.init.zeros_(self.adapter.weight)

    def forward(self, relations: Tensor) -> Tensor:
        """Return ``(..., d_model)`` from ``(..., 2)``: number and confidence."""
        embedded = self.embedding(relations[..., 0].long())
        added: Tensor = self.adapter(torch.cat([embedded, relations[..., 1:].to(embedded)], dim=-1))
        return added


def check_relations(known: int, relations: Tensor | None, positions: Sequence[int]) -> None:
    """Refuse relations that a model does not take.

    Args:
        known: number of relations that the model knows.
        relations: what was given.
        positions: B and L of the vectors.

    Raises:
        ValueError: the model knows none, or the shape is not ``(B, L, 2)``.
    """
    if relations is None:
        return
    if not known:
        raise ValueError("this model knows no relations, got some")
    if tuple(relations.shape) != (*positions, 2):
        raise ValueError(
            f"relations must have shape {(*positions, 2)}, got {tuple(relations.shape)}"
        )


def check_lengths(lengths: Tensor, B: int, L: int) -> None:
    """Refuse lengths of B rows that are not 1..L.

    Raises:
        ValueError: the shape is not ``(B,)``, or a length is out of range.
    """
    if lengths.shape != (B,) or int(lengths.min()) < 1 or int(lengths.max()) > L:
        raise ValueError(
            f"lengths must hold {B} numbers from 1 to {L}, got shape {tuple(lengths.shape)} "
            f"with values {int(lengths.min())} to {int(lengths.max())}"
        )


def conditions(
    predictor: object, tmd: Tensor | None, relations: Tensor | None
) -> dict[str, Tensor]:
    """Return the arguments of ``predict_all`` beside the vectors that a predictor takes.

    Args:
        predictor: anything with ``predict_all``; a `NextVectorModel` says what it takes.
        tmd: ``(B, 16)`` or None for data without TMD codes.
        relations: ``(B, L, 2)`` or None for data without relations.
    """
    taken = {}
    if tmd is not None and getattr(predictor, "d_tmd", False):
        taken["tmd"] = tmd
    if relations is not None and getattr(predictor, "n_relations", False):
        taken["relations"] = relations
    return taken
