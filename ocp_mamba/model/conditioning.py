"""A model that takes the relation by which each concept follows the one before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.model.ensemble import EnsembleLVM


class RelationAdapter(nn.Module):
    """Maps relations to vectors that are added to the residual stream.

    The embedding of the relation's number and its confidence are concatenated and mapped linearly.
    An unknown relation (number 0, confidence 0) adds nothing; before training no relation does.
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


class RelationLVM(EnsembleLVM):
    """An `EnsembleLVM` (of one stack or more) that takes ``relations`` beside the vectors.

    ``relations`` is ``(B, L, 2)``: the number of the relation by which each position follows the
    one before it (0 for unknown) and the confidence in it, 0..1; None where all are unknown. In
    `step` it is ``(B, 2)``. The relation to the concept to predict is never given.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create a model with freshly drawn weights; its relations add nothing before training."""
        super().__init__(config)
        self.n_relations = len(config.relations)
        # drawn last, so that the other weights equal those of a model without relations
        self.relation_adapter = RelationAdapter(config)

    def embed(self, vectors: Tensor, tmd: Tensor | None, **conditions: Tensor | None) -> Tensor:
        """Return the first layer's input, ``(B, [L,] d_model)``, with the relations added."""
        x, relations = super().embed(vectors, tmd), conditions.get("relations")
        return x if relations is None else x + self.relation_adapter(relations)

    def check(
        self,
        seq_vectors: Tensor,
        tmd: Tensor | None,
        cache: InferenceCache | None = None,
        **conditions: Tensor | None,
    ) -> None:
        """Raise `ValueError` for arguments that do not fit the model."""
        relations = conditions.pop("relations", None)
        super().check(seq_vectors, tmd, cache, **conditions)
        if relations is not None:
            check_relations(relations, seq_vectors.shape[:2])


def check_relations(relations: Tensor, positions: Sequence[int]) -> None:
    """Refuse relations of another shape than ``(B, L, 2)``.

    Raises:
        ValueError: the shape is another one.
    """
    if tuple(relations.shape) != (*positions, 2):
        raise ValueError(
            f"relations must have shape {(*positions, 2)}, got {tuple(relations.shape)}"
        )
