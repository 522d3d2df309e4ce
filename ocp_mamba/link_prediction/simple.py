"""Scorers without gradients, from one vector a concept: what any model must beat."""

from __future__ import annotations

import numpy as np

from ocp_mamba.link_prediction.graph import KnowledgeGraph
from ocp_mamba.link_prediction.ranking import Scorer

NEIGHBOURS = (16, 64)
SHARPNESS = (10.0, 30.0)
"""Numbers of neighbours, and inverse temperatures of their votes, of which dev chooses."""

PENALTIES = (1.0, 10.0)


def most_common_parent(graph: KnowledgeGraph) -> Scorer:
    """Score each entity by the number of its children in train."""
    counts = np.bincount(graph.pairs("train")[:, 1], minlength=graph.n_entities)
    return lambda heads: np.broadcast_to(counts, (len(heads), len(counts)))


def neighbour_votes(
    graph: KnowledgeGraph, vectors: np.ndarray, neighbours: int, sharpness: float
) -> Scorer:
    """Score each entity by the votes of the train children that are nearest to the head.

    A neighbour votes for its parents with the weight ``exp(sharpness * cosine)``; what no
    neighbour votes for has a small score by its cosine to the head.

    Args:
        graph: its train edges vote.
        vectors: unit rows ``(E, D)``.
        neighbours: how many vote.
        sharpness: inverse temperature of the votes.
    """
    edges = graph.pairs("train")
    known, first = np.unique(edges[:, 0], return_inverse=True)

    def score(heads: np.ndarray) -> np.ndarray:
        cosines = vectors[heads] @ vectors.T
        near = cosines[:, known]
        near[heads[:, None] == known[None]] = -np.inf  # its own train edges would be the answer
        most = min(neighbours, near.shape[1])
        lowest = np.partition(near, -most, axis=1)[:, [-most]]
        weights = np.where(near >= lowest, np.exp(sharpness * (near - 1)), 0)
        scores = 1e-6 * cosines
        for row, weight in enumerate(weights):
            votes = weight[first]
            np.add.at(scores[row], edges[votes > 0, 1], votes[votes > 0])
        return scores

    return score


def ridge(graph: KnowledgeGraph, vectors: np.ndarray, penalty: float) -> Scorer:
    """Score each entity by its cosine to an affine image of the head's vector.

    The map minimizes the squared distance to the parents' vectors over train's edges, plus
    ``penalty`` times the squared weights.
    """
    children, parents = graph.pairs("train").T
    X, Y = vectors[children].astype(np.float64), vectors[parents].astype(np.float64)
    x_mean, y_mean = X.mean(axis=0), Y.mean(axis=0)
    X -= x_mean
    gram = X.T @ X + penalty * np.eye(X.shape[1])
    weights = np.linalg.solve(gram, X.T @ (Y - y_mean)).astype(np.float32)
    offset = (y_mean - x_mean @ weights).astype(np.float32)
    return lambda heads: (vectors[heads] @ weights + offset) @ vectors.T
