"""The rows of the benchmark's table: what each is made of, and with which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.link_prediction.candidates import CandidateHead, Candidates
from ocp_mamba.link_prediction.graph import KnowledgeGraph
from ocp_mamba.link_prediction.models import (
    NEIGHBOURHOOD,
    ONE,
    TOKENS,
    Attention,
    Linear,
    Mamba,
    reader_of,
    relation_names,
)
from ocp_mamba.link_prediction.training import Ranker, TrainSettings
from ocp_mamba.link_prediction.vectors import TextVectors

OURS, BASELINE, PEER = "ours", "baseline", "peer"
CPU_SHAPE = {"d_state": 16, "headdim": 64}


@dataclass(frozen=True)
class Row:
    """A row that is trained.

    Attributes:
        name: in the table and in runs.
        role: `OURS`, `BASELINE` (frozen candidates or no Mamba-2 layers) or `PEER`.
        reads: which sequence it reads: `ONE`, `NEIGHBOURHOOD` or `TOKENS`.
        model: kind of the query model: linear, attention or mamba.
        shape: arguments of the model.
        temperature: of the softmax.
        rank: of the candidate head's learned term; 0 for frozen candidates and no walks.
        longest: most vectors that are read before the head's own.
        train: settings of the training.
    """

    name: str
    role: str
    reads: str
    model: str
    shape: Mapping[str, Any] = field(default_factory=dict)
    temperature: float = 0.03
    rank: int = 0
    longest: int = 1
    train: TrainSettings = field(default_factory=TrainSettings)

    def settings(self) -> dict[str, Any]:
        """Return all that the training depends on, by the names of params."""
        found = asdict(self)
        train, shape = found.pop("train"), found.pop("shape")
        return {
            **found,
            **{f"shape.{name}": value for name, value in shape.items()},
            **{f"train.{name}": value for name, value in train.items()},
        }

    def build(
        self, graph: KnowledgeGraph, vectors: TextVectors, candidates: Candidates, seed: int
    ) -> Ranker:
        """Return the untrained ranker; the seed is that of its weights."""
        torch.manual_seed(seed)
        reader = reader_of(self.reads, graph, vectors, self.longest)
        if not self.rank:
            candidates = replace(candidates, walks=None)
        head = CandidateHead(candidates, self.temperature, self.rank)
        return Ranker(self._model(graph), reader, head)

    def _model(self, graph: KnowledgeGraph) -> nn.Module:
        if self.model == "linear":
            return Linear(**self.shape)
        if self.model == "attention":
            return Attention(**self.shape)
        relations = tuple(relation_names(graph)) if self.reads == NEIGHBOURHOOD else ()
        return Mamba(ModelConfig(**CPU_SHAPE, relations=relations, **self.shape))


RANK = 128
"""Of the learned candidate head."""

ROWS: Mapping[str, Row] = {
    row.name: row
    for row in (
        Row("linear-softmax", BASELINE, ONE, "linear", temperature=0.02),
        Row("mlp", BASELINE, ONE, "linear", {"hidden": 1024, "dropout": 0.1}, temperature=0.02),
        Row("mamba-vector", OURS, ONE, "mamba", {"d_model": 256, "n_layers": 2}, temperature=0.02),
        Row("mlp-head", BASELINE, ONE, "linear", {"hidden": 1024, "dropout": 0.1}, rank=RANK),
        Row(
            "mamba-neighbours", OURS, NEIGHBOURHOOD, "mamba",
            {"d_model": 256, "n_layers": 1, "dropout": 0.1}, longest=6, rank=RANK,
        ),
        Row(
            "attention-tokens", PEER, TOKENS, "attention",
            {"heads": 4, "hidden": 768, "dropout": 0.2}, longest=24, rank=RANK,
        ),
        Row(
            "mamba-tokens", OURS, TOKENS, "mamba",
            {"d_model": 192, "n_layers": 1, "dropout": 0.1}, longest=24, rank=RANK,
        ),
    )
}  # fmt: skip
"""The trained rows by name, in the order of the table."""

MOST_COMMON, VOTES, RIDGE = "most-common-parent", "k-nn-votes", "ridge"
SIMPLE = (MOST_COMMON, VOTES, RIDGE)
ALL_ROWS = (*SIMPLE, *ROWS)


@dataclass(frozen=True)
class Published:
    """Figures that others have published; nothing here has run it.

    Attributes:
        name: of the method.
        figures: on test, without the mask, by metric.
        source: where they stand.
    """

    name: str
    figures: Mapping[str, float]
    source: str


PUBLISHED = (
    Published(
        "SimKGC",
        {"hits_at_1": 0.496, "hits_at_3": 0.661},
        "Wang et al., 2022; it trains its BERT encoder; hypernym queries of test",
    ),
)
