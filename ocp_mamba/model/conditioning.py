"""What training asks of any model, and what a model is told beside the vectors.

That is TMD codes and the relations between concepts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig


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
