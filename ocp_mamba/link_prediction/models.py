"""The queries' side: models from a head's sequence of vectors to the vector that is searched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import D_VECTOR, ModelConfig
from ocp_mamba.link_prediction.graph import HYPERNYM, KnowledgeGraph
from ocp_mamba.link_prediction.paths import INVERSE
from ocp_mamba.link_prediction.vectors import TextVectors
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM

ONE, NEIGHBOURHOOD, TOKENS = "one vector", "neighbours", "tokens"


@dataclass(frozen=True)
class Sequences:
    """A batch of sequences, right-padded; the last valid vector of each is the head's own.

    Attributes:
        vectors: float32 ``(B, L, D)``.
        lengths: ``(B,)``.
        relations: float32 ``(B, L, 2)``, number and confidence of each vector's relation to the
            head; None where there are no relations.
    """

    vectors: Tensor
    lengths: Tensor
    relations: Tensor | None = None


Reader = Callable[[np.ndarray], Sequences]
"""Gives the sequences of heads ``(B,)``."""


def reader_of(kind: str, graph: KnowledgeGraph, vectors: TextVectors, longest: int) -> Reader:
    """Return what reads the sequences of a kind: `ONE`, `NEIGHBOURHOOD` or `TOKENS`.

    Args:
        kind: of the sequences.
        graph: the neighbours are those of its train edges.
        vectors: of its texts.
        longest: most vectors before the head's own.
    """
    pooled = torch.from_numpy(vectors.pooled)

    def one(heads: np.ndarray) -> Sequences:
        return Sequences(pooled[heads][:, None], torch.ones(len(heads), dtype=torch.long))

    def tokens(heads: np.ndarray) -> Sequences:
        found, lengths = vectors.sequences(heads, longest)
        return _with_own(F.normalize(found, dim=-1), lengths, pooled[heads])

    if kind == ONE:
        return one
    if kind == TOKENS:
        return tokens
    return _Neighbours(graph, pooled, longest)


def _with_own(vectors: Tensor, lengths: Tensor, own: Tensor) -> Sequences:
    """Put each head's own vector behind its sequence."""
    longer = F.pad(vectors, (0, 0, 0, 1))
    longer[torch.arange(len(own)), lengths] = own
    return Sequences(longer, lengths + 1)


class _Neighbours:
    """Reads the vectors of a head's train neighbours, but never its train parents."""

    def __init__(self, graph: KnowledgeGraph, pooled: Tensor, most: int) -> None:
        self._pooled, self._most = pooled, most
        self._near: list[list[tuple[int, int]]] = [[] for _ in range(graph.n_entities)]
        names = relation_names(graph)
        for head, relation, tail in graph.triples["train"].tolist():
            name = graph.relations[relation]
            if name != HYPERNYM:
                self._near[head].append((1 + names.index(name), tail))
            self._near[tail].append((1 + names.index(name + INVERSE), head))

    def __call__(self, heads: np.ndarray) -> Sequences:
        near = [self._near[head][: self._most] for head in heads.tolist()]
        lengths = torch.tensor([len(row) for row in near])
        width = int(lengths.max())
        entities = np.zeros((len(near), width), dtype=np.int64)
        relations = torch.zeros(len(near), width + 1, 2)
        for row, line in enumerate(near):
            for column, (relation, entity) in enumerate(line):
                entities[row, column] = entity
                relations[row, column] = torch.tensor([relation, 1.0])
        found = _with_own(self._pooled[entities], lengths, self._pooled[heads])
        return Sequences(found.vectors, found.lengths, relations)


def relation_names(graph: KnowledgeGraph) -> Sequence[str]:
    """Return the relations by which a neighbour can be near a head, inverses among them."""
    names = [name for name in graph.relations if name != HYPERNYM]
    return [*names, *(name + INVERSE for name in graph.relations)]


class Linear(nn.Module):
    """An affine map of the last vector of each sequence, which is the head's own."""

    def __init__(self, hidden: int = 0, dropout: float = 0.0) -> None:
        """Create a linear map, or one hidden layer of GELU with a residual."""
        super().__init__()
        self.output = nn.Linear(D_VECTOR, D_VECTOR)
        nn.init.eye_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.hidden = (
            nn.Sequential(
                nn.Linear(D_VECTOR, hidden),
                nn.GELU(),
                nn.Dropout(dropout),
                nn.Linear(hidden, D_VECTOR),
            )
            if hidden
            else None
        )

    def forward(self, sequences: Sequences) -> Tensor:
        """Return unit rows ``(B, D)``."""
        last = sequences.vectors[torch.arange(len(sequences.lengths)), sequences.lengths - 1]
        found = self.output(last)
        if self.hidden is not None:
            found = found + self.hidden(last * D_VECTOR**0.5)
        return F.normalize(found.float(), dim=-1)


class Attention(nn.Module):
    """Learned queries attend over the sequence; their weighted means are mapped to one vector."""

    def __init__(self, heads: int, hidden: int, dropout: float) -> None:
        """Create ``heads`` queries over the vectors, then a hidden layer of GELU."""
        super().__init__()
        self.heads, self.scale = heads, D_VECTOR**0.5
        self.keys = nn.Linear(D_VECTOR, heads)
        self.hidden = nn.Sequential(
            nn.Linear((heads + 1) * D_VECTOR, hidden), nn.GELU(), nn.Dropout(dropout)
        )
        self.output = nn.Linear(hidden, D_VECTOR)

    def forward(self, sequences: Sequences) -> Tensor:
        """Return unit rows ``(B, D)``."""
        vectors, lengths = sequences.vectors * self.scale, sequences.lengths
        outside = torch.arange(vectors.shape[1]) >= lengths[:, None]
        weights = self.keys(vectors).float().masked_fill(outside[..., None], -torch.inf).softmax(1)
        means = torch.einsum("blh,bld->bhd", weights, vectors).flatten(1)
        own = vectors[torch.arange(len(lengths)), lengths - 1]
        return F.normalize(self.output(self.hidden(torch.cat([means, own], 1))).float(), dim=-1)


class Mamba(nn.Module):
    """The project's model over the sequence: what it predicts to follow the head's own vector."""

    def __init__(self, config: ModelConfig) -> None:
        """Create an `OCPMambaLVM`, or a `RelationLVM` where the config has relations."""
        super().__init__()
        lvm = build_model(config)
        assert isinstance(lvm, OCPMambaLVM)
        self.lvm = lvm

    def forward(self, sequences: Sequences) -> Tensor:
        """Return unit rows ``(B, D)``."""
        conditions = {} if sequences.relations is None else {"relations": sequences.relations}
        return self.lvm(sequences.vectors, None, sequences.lengths, **conditions).float()
