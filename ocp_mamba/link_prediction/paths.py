"""Walks through the train graph from a head to the parents of what is near to it.

A walk has two or three steps, one of which goes to a train parent. It never takes the head's own
hypernym edge, neither as its first step nor by coming back to the head, so the walks of a train
head say as little of its parent as those of a test head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from ocp_mamba.link_prediction.graph import HYPERNYM, KnowledgeGraph

INVERSE = "^-1"
STAY = "stay"
MOST_TYPES = 32
LEAST_WALKS = 20
"""Types of walks that are kept, and in how many train heads a kept type occurs at least."""


@dataclass(frozen=True)
class Walks:
    """For each head the candidates that its walks end at.

    Attributes:
        types: names of the W types of walks.
        shares: for each type a sparse matrix ``(E, E)``: of the walks of that type from a head, the
            share that ends at a candidate.
    """

    types: Sequence[str]
    shares: Sequence[sparse.csr_matrix]

    def of(self, heads: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return row in ``heads``, candidate, type and share of each entry, arrays ``(n,)``."""
        parts = [share[heads].tocoo() for share in self.shares]
        return (
            np.concatenate([part.row for part in parts]).astype(np.int64),
            np.concatenate([part.col for part in parts]).astype(np.int64),
            np.repeat(np.arange(len(parts)), [part.nnz for part in parts]),
            np.concatenate([part.data for part in parts]).astype(np.float32),
        )


def adjacency(graph: KnowledgeGraph) -> dict[str, sparse.csr_matrix]:
    """Return for each relation of train and its inverse which entity leads to which."""
    size = (graph.n_entities, graph.n_entities)
    found = {}
    for number, relation in enumerate(graph.relations):
        triples = graph.triples["train"]
        heads, tails = triples[triples[:, 1] == number][:, [0, 2]].T
        ones = np.ones(len(heads), dtype=np.float32)
        found[relation] = sparse.csr_matrix((ones, (heads, tails)), shape=size)
        found[relation + INVERSE] = sparse.csr_matrix((ones, (tails, heads)), shape=size)
    return found


def walks_of(graph: KnowledgeGraph) -> Walks:
    """Return the types of walks that most often end at the parent, by train's edges alone."""
    steps = adjacency(graph)
    answers = steps[HYPERNYM].astype(bool)
    known = np.unique(graph.pairs("train")[:, 0])
    found: list[tuple[float, str, sparse.csr_matrix]] = []
    for name, ends in _ends(steps):
        share = _shares(ends)
        right = float(share.multiply(answers).sum())
        heads = int((share[known].getnnz(axis=1) > 0).sum())
        if heads >= LEAST_WALKS:
            found.append((right * right / heads, name, share))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    kept = found[:MOST_TYPES]
    return Walks([name for _, name, _ in kept], [share for _, _, share in kept])


def _ends(steps: Mapping[str, sparse.csr_matrix]) -> Iterator[tuple[str, sparse.csr_matrix]]:
    """The name of each type of walk, and how many of its walks lead from where to where."""
    for first, one in steps.items():
        if first == HYPERNYM:
            continue
        for second, other in {STAY: None, **steps}.items():
            reached = _without_diagonal(one if other is None else one @ other)
            yield f"{first} {second} {HYPERNYM}", reached @ steps[HYPERNYM]
        above = _without_diagonal(one) @ steps[HYPERNYM]
        for last, other in steps.items():
            if last != HYPERNYM:
                yield f"{first} {HYPERNYM} {last}", above @ other


def _without_diagonal(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The matrix without its diagonal: a walk must not come back to its head."""
    coo = matrix.tocoo()
    away = coo.row != coo.col
    return sparse.csr_matrix((coo.data[away], (coo.row[away], coo.col[away])), shape=coo.shape)


def _shares(walks: sparse.csr_matrix) -> sparse.csr_matrix:
    """Each row divided by its sum."""
    sums = np.asarray(walks.sum(axis=1), dtype=np.float32).ravel()
    return (sparse.diags(1 / np.maximum(sums, 1)) @ walks).tocsr()
