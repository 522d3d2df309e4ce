"""Simple predictors that a model must beat, with the same ``predict_all`` as a model.

Each takes right-padded unit rows ``(B, L, 768)`` and returns unit rows ``(B, L, 768)``; position t
sees positions <= t only.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex

RIDGE_PENALTIES = (0.1, 1.0, 10.0, 100.0)
RESIDUAL_PENALTIES = (1.0, 10.0, 100.0, 1_000.0, 10_000.0)
STEPS = (0.1, 0.25, 0.5, 0.75, 1.0)


class Predictor(Protocol):
    """Anything that predicts the next vector at every position."""

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(B, L, 768)`` unit rows from ``(B, L, 768)``."""
        ...


class Persistence:
    """The next vector is the last one again."""

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return the input."""
        return seq_vectors


class ContextMean:
    """The next vector is the direction of the context's mean."""

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return the normalized running mean over positions."""
        return F.normalize(seq_vectors.cumsum(dim=1), dim=-1)


class GlobalMean:
    """The next vector is always the direction of the mean training target."""

    def __init__(self, dataset: Dataset) -> None:
        """Average the train split's targets, each as often as it occurs."""
        targets = dataset.examples("train").target
        self.mean = F.normalize(torch.from_numpy(dataset.bank[targets].mean(axis=0)), dim=0)

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return the mean at every position."""
        return self.mean.expand_as(seq_vectors)


class Ridge:
    """Affine map from the last vector to the next, least squares with an L2 penalty.

    The penalty is the one of `RIDGE_PENALTIES` with the best cosine on a tenth of the train
    split's chains; the map is then fitted on all of them.
    """

    def __init__(self, dataset: Dataset) -> None:
        """Fit on the train split."""
        examples = dataset.examples("train")
        X = torch.from_numpy(dataset.bank[examples.last])
        Y = torch.from_numpy(dataset.bank[examples.target])
        held_out = torch.from_numpy(examples.chain % 10 == 0)
        self.penalty = RIDGE_PENALTIES[0]
        if 0 < int(held_out.sum()) < len(X):
            squares = _Squares(X[~held_out], Y[~held_out])
            fits = {p: squares.solve(p) for p in RIDGE_PENALTIES}
            scores = {
                p: float(F.cosine_similarity(X[held_out] @ W + b, Y[held_out]).mean())
                for p, (W, b) in fits.items()
            }
            self.penalty = max(scores, key=scores.__getitem__)
        self._W, self._b = _Squares(X, Y).solve(self.penalty)

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return the normalized affine image of each position."""
        return F.normalize(seq_vectors @ self._W + self._b, dim=-1)


class _Squares:
    """Sums of squares and products, from which the map is solved for any penalty."""

    def __init__(self, X: Tensor, Y: Tensor) -> None:
        self._x_mean, self._y_mean = X.mean(0), Y.mean(0)
        Xc, Yc = (X - self._x_mean).double(), (Y - self._y_mean).double()
        self._gram, self._cross = Xc.T @ Xc, Xc.T @ Yc

    def solve(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Minimize ``|X W + b - Y|^2 + penalty |W|^2`` with an unpenalized b."""
        gram = self._gram + penalty * torch.eye(len(self._gram), dtype=torch.float64)
        W = torch.linalg.solve(gram, self._cross, left=True).float()
        return W, self._y_mean - self._x_mean @ W


class ResidualRidge:
    """The last vector, and an affine step from it, least squares with an L2 penalty on the map.

    Where train says little about a direction, the step there is small and the last vector stays:
    a heavy penalty leaves persistence and the mean step. Penalty and size of the step are those of
    `RESIDUAL_PENALTIES` and `STEPS` with the best cosine on given pairs.
    """

    def __init__(self, dataset: Dataset, last: Tensor, target: Tensor) -> None:
        """Fit on the train split; ``last`` and ``target``, ``(n, 768)``, choose the settings."""
        examples = dataset.examples("train")
        X = torch.from_numpy(dataset.bank[examples.last])
        squares = _Squares(X, torch.from_numpy(dataset.bank[examples.target]) - X)
        best = -2.0
        for penalty in RESIDUAL_PENALTIES:
            W, b = squares.solve(penalty)
            step = last @ W + b
            for size in STEPS:
                score = float(F.cosine_similarity(last + size * step, target).mean())
                if score > best:
                    best, self.penalty, self.size = score, penalty, size
                    self._W, self._b = W, b

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return the direction of each position's vector with its step added."""
        step = seq_vectors @ self._W + self._b
        return F.normalize(seq_vectors + self.size * step, dim=-1)


class NearestNeighbour:
    """The most frequent successor of the nearest concept that has one in the train split."""

    def __init__(self, dataset: Dataset) -> None:
        """Find each train concept's most frequent successor (the lowest id among equals)."""
        examples = dataset.examples("train")
        pairs, counts = np.unique(
            np.stack([examples.last, examples.target], axis=1), axis=0, return_counts=True
        )
        best_first = np.lexsort((pairs[:, 1], -counts, pairs[:, 0]))
        known, first = np.unique(pairs[best_first, 0], return_index=True)
        self._next = torch.from_numpy(dataset.bank[pairs[best_first[first], 1]])
        self._index = BankIndex(dataset.bank[known])

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return the vector of the nearest concept's successor at each position."""
        flat = seq_vectors.reshape(-1, seq_vectors.shape[-1]).numpy()
        _, rows = self._index.search(flat, 1)
        return self._next[torch.from_numpy(rows[:, 0])].view_as(seq_vectors)


def cheap_baselines(dataset: Dataset) -> dict[str, Predictor]:
    """Fit the baselines that need no gradient; names are those of metrics and runs."""
    return {
        "persistence": Persistence(),
        "context_mean": ContextMean(),
        "global_mean": GlobalMean(dataset),
        "ridge": Ridge(dataset),
        "nearest_neighbour": NearestNeighbour(dataset),
    }
