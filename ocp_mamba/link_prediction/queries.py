"""The queries of a split: heads whose parent is to be found, and which candidates do not compete.

A query's known other parents never compete ("filtered", as in Bordes et al., "Translating
Embeddings for Modeling Multi-relational Data", 2013). The mask takes out two kinds more, which a
person would never answer with: the query itself and what train says is below it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ocp_mamba.link_prediction.graph import SPLITS, KnowledgeGraph

WITH_CHILDREN, WITHOUT_CHILDREN = "child has train children", "child has no train children"
NEVER_PARENT = "parent never a train parent"


@dataclass(frozen=True)
class Queries:
    """The Q queries of a split.

    Attributes:
        heads: int64 ``(Q,)``, the entities that are asked about.
        parents: int64 ``(Q,)``, the right answers.
        other_parents: for each query, its other true parents in any split.
        below: for each query, itself and its descendants by train's edges.
        strata: for each stratum, bool ``(Q,)``.
    """

    heads: np.ndarray
    parents: np.ndarray
    other_parents: Sequence[np.ndarray]
    below: Sequence[np.ndarray]
    strata: Mapping[str, np.ndarray]

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.heads)


def queries_of(graph: KnowledgeGraph, split: str) -> Queries:
    """Return the queries of a split, one for each of its hypernym triples."""
    parents: dict[int, set[int]] = defaultdict(set)
    for name in SPLITS:
        for head, parent in graph.pairs(name).tolist():
            parents[head].add(parent)
    children = children_of(graph)
    heads, answers = graph.pairs(split).T
    has_children = np.array([head in children for head in heads.tolist()], dtype=bool)
    asked = list(zip(heads.tolist(), answers.tolist(), strict=True))
    return Queries(
        heads,
        answers,
        [np.array(sorted(parents[head] - {answer}), dtype=np.int64) for head, answer in asked],
        [np.array(sorted(descendants(head, children) - {answer})) for head, answer in asked],
        {
            WITH_CHILDREN: has_children,
            WITHOUT_CHILDREN: ~has_children,
            NEVER_PARENT: np.array([answer not in children for _, answer in asked], dtype=bool),
        },
    )


def children_of(graph: KnowledgeGraph) -> dict[int, list[int]]:
    """Return the children of each parent in train."""
    children: dict[int, list[int]] = defaultdict(list)
    for head, parent in graph.pairs("train").tolist():
        children[parent].append(head)
    return dict(children)


def descendants(entity: int, children: Mapping[int, Sequence[int]]) -> set[int]:
    """Return an entity and all below it; a circle of edges ends where it closes."""
    found, waiting = {entity}, [entity]
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found
