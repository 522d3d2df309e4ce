"""The candidates' side: what a query is compared with, and the scores that come of it.

A candidate's score is the cosine of its frozen vector to the query. A learned head adds three
terms: a bilinear one of low rank over the candidate's features, one for how many children train
gives it, and one for the walks that lead to it from the head (`paths`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ocp_mamba.link_prediction.graph import KnowledgeGraph
from ocp_mamba.link_prediction.paths import Walks
from ocp_mamba.link_prediction.vectors import TextVectors


@dataclass(frozen=True)
class Candidates:
    """What train and the texts say of E candidates.

    Attributes:
        pooled: unit rows ``(E, D)``, bfloat16.
        texts: pooled vector and name's vector side by side, bfloat16 ``(E, 2 D)``.
        child_sums: the sum of the vectors of each one's train children, float32 ``(E, D)``.
        n_children: of each in train, float32 ``(E,)``.
        walks: from heads to candidates, or None.
    """

    pooled: Tensor
    texts: Tensor
    child_sums: Tensor
    n_children: Tensor
    walks: Walks | None

    def features(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features ``(C, 3 D)`` and the log numbers of children ``(C,)`` of some."""
        n = self.n_children[rows]
        means = self.child_sums[rows] / n.clamp(min=1)[:, None]
        return torch.cat([self.texts[rows], means.to(self.texts.dtype)], dim=1), n.log1p()

    def features_without(self, parents: Tensor, children: Tensor) -> tuple[Tensor, Tensor]:
        """Return `features` as they were if train lacked the edge from each child to its parent.

        Args:
            parents: ``(B,)``.
            children: ``(B,)``, a train child of each.
        """
        n = (self.n_children[parents] - 1).clamp(min=0)
        sums = (self.child_sums[parents] - self.pooled[children].float()) * (n > 0)[:, None]
        means = sums / n.clamp(min=1)[:, None]
        return torch.cat([self.texts[parents], means.to(self.texts.dtype)], dim=1), n.log1p()


def candidates_of(graph: KnowledgeGraph, vectors: TextVectors, walks: Walks | None) -> Candidates:
    """Gather what train and the texts say of each entity."""
    pooled = torch.from_numpy(vectors.pooled).to(torch.bfloat16)
    children, parents = (torch.from_numpy(column.copy()) for column in graph.pairs("train").T)
    return Candidates(
        pooled,
        torch.cat([pooled, torch.from_numpy(vectors.names).to(torch.bfloat16)], dim=1),
        torch.zeros(pooled.shape).index_add_(0, parents, pooled[children].float()),
        torch.bincount(parents, minlength=len(pooled)).float(),
        walks,
    )


class CandidateHead(nn.Module):
    """Scores of candidates for queries, with or without the learned terms.

    ``temperature`` divides every score, so that a softmax over them is the model's answer.
    """

    def __init__(self, candidates: Candidates, temperature: float, rank: int) -> None:
        """Create a head whose learned terms are zero; ``rank`` 0 leaves them out."""
        super().__init__()
        self.candidates, self.temperature, self.rank = candidates, temperature, rank
        width = candidates.pooled.shape[1]
        if rank:
            self.query = nn.Linear(width, rank, bias=False)
            self.candidate = nn.Linear(3 * width, rank, bias=False)
            nn.init.zeros_(self.query.weight)
            self.per_child = nn.Parameter(torch.zeros(()))
            n_walks = 0 if candidates.walks is None else len(candidates.walks.types)
            self.walks = nn.Parameter(torch.zeros(n_walks))

    def scores(self, queries: Tensor, rows: Tensor) -> Tensor:
        """Return scores without the walks, ``(B, C)``, of candidates ``(C,)`` for ``(B, D)``."""
        found = queries.to(torch.bfloat16) @ self.candidates.pooled[rows].T
        return self._with_learned(found, queries, self.prepare(rows))

    def prepare(self, rows: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return what the learned terms need of candidates ``(C,)``; None without such terms."""
        if not self.rank:
            return None
        features, counts = self.candidates.features(rows)
        return self._candidate(features), self.per_child * counts

    def _with_learned(
        self, found: Tensor, queries: Tensor, prepared: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        if prepared is None:
            return found.float() / self.temperature
        learned = self.query(queries).to(torch.bfloat16) @ prepared[0].T
        return (found.float() + learned.float()) / self.temperature + prepared[1]

    def scores_of_pairs(
        self, queries: Tensor, rows: Tensor, children: Tensor | None = None
    ) -> Tensor:
        """Return the score of one candidate for each query, ``(B,)``, without the walks.

        Args:
            queries: ``(B, D)``.
            rows: the candidates ``(B,)``.
            children: ``(B,)``; the candidate's score is then what it was without this child's edge.
        """
        found = (queries * self.candidates.pooled[rows].float()).sum(-1)
        if not self.rank:
            return found / self.temperature
        features, counts = (
            self.candidates.features(rows)
            if children is None
            else self.candidates.features_without(rows, children)
        )
        learned = (self.query(queries) * self._candidate(features).float()).sum(-1)
        return (found + learned) / self.temperature + self.per_child * counts

    def _candidate(self, features: Tensor) -> Tensor:
        return nn.functional.linear(features, self.candidate.weight.to(features.dtype))

    def walk_scores(self, heads: np.ndarray) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return row, candidate and score of what the walks from heads add, or None."""
        if not self.rank or self.candidates.walks is None:
            return None
        rows, columns, types, shares = self.candidates.walks.of(heads)
        added = WALK_SCALE * self.walks[torch.from_numpy(types)] * torch.from_numpy(shares)
        return torch.from_numpy(rows), torch.from_numpy(columns), added

    def all_scores(
        self, queries: Tensor, heads: np.ndarray, prepared: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Return the scores of all E candidates, float32 ``(B, E)``.

        Args:
            queries: ``(B, D)``.
            heads: that they are of.
            prepared: what `prepare` returns for all candidates.
        """
        found = queries.to(torch.bfloat16) @ self.candidates.pooled.T
        scores = self._with_learned(found, queries, prepared)
        if (walks := self.walk_scores(heads)) is not None:
            scores.index_put_(walks[:2], walks[2], accumulate=True)
        return scores


WALK_SCALE = 10.0
"""What a walk's weight is multiplied by, so that it moves as fast as the other weights matter."""
