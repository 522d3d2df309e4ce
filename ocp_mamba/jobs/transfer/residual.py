"""Predictions in residual form: what a context already says, and a step from there.

All that they are chosen by is the source's val split, and of it the sequences whose target the
source's train split never had as a target: there a predictor stands as it does in another ontology.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.baselines.simple import ContextMean, Predictor, ResidualRidge
from ocp_mamba.data.analysis.leakage import strata
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.gates import MIN_EXAMPLES
from ocp_mamba.evaluation.predict import predict_examples

STEPS = 10
"""Weights are multiples of a tenth."""


class Interpolated:
    """The direction of a weighted sum: a prediction, the context's last vector, and its mean."""

    def __init__(self, predictor: Predictor, weights: tuple[float, float, float]) -> None:
        """Wrap ``predictor``; the weights are its own, the last vector's and the mean's."""
        self.predictor, self.weights = predictor, weights
        self.d_tmd = int(getattr(predictor, "d_tmd", 0))
        self.n_relations = int(getattr(predictor, "n_relations", 0))

    def predict_all(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, **given: Tensor
    ) -> Tensor:
        """Return ``(B, L, 768)`` unit rows from ``(B, L, 768)``."""
        if tmd is not None:
            given["tmd"] = tmd
        of_model, of_last, of_mean = self.weights
        mean = ContextMean().predict_all(seq_vectors)
        total = of_last * seq_vectors + of_mean * mean
        if of_model:
            total = total + of_model * self.predictor.predict_all(seq_vectors, **given)
        return F.normalize(total, dim=-1)

    def __str__(self) -> str:
        """Its weights, for a person."""
        names = ("prediction", "last vector", "context mean")
        return " + ".join(f"{w:.1f} {n}" for w, n in zip(self.weights, names, strict=True) if w)


def new_targets(source: Dataset) -> tuple[np.ndarray, str]:
    """Which sequences of the source's val split residual forms are chosen by, and their name.

    Returns:
        A mask over ``source.examples("val")``: the stratum `unseen_target`, or `unseen`, or all,
        the first that has enough sequences.
    """
    found = strata(source, "val")
    for name in ("unseen_target", "unseen"):
        if found[name].sum() >= MIN_EXAMPLES:
            return found[name], name
    return np.ones(source.n_examples("val"), bool), "all"


def best_weights(
    predictor: Predictor | None, source: Dataset, chosen: np.ndarray
) -> tuple[float, float, float]:
    """Return the weights of `Interpolated` with the best mean cosine on chosen val sequences.

    Args:
        predictor: None for the last vector and the mean alone.
        source: its val split decides.
        chosen: mask over ``source.examples("val")``.
    """
    at = torch.from_numpy(chosen)
    target = torch.from_numpy(source.bank[source.examples("val").target])[at]
    parts = [
        torch.zeros_like(target)
        if predictor is None
        else predict_examples(predictor, source, "val")[at],
        torch.from_numpy(source.bank[source.examples("val").last])[at],
        predict_examples(ContextMean(), source, "val")[at],
    ]
    gram = [[(a * b).sum(-1) for b in parts] for a in parts]
    with_target = [(part * target).sum(-1) for part in parts]

    def score(weights: tuple[float, ...]) -> float:
        square = sum(weights[i] * weights[j] * gram[i][j] for i, j in product(range(3), repeat=2))
        along = sum(w * cosine for w, cosine in zip(weights, with_target, strict=True))
        return float((along / torch.as_tensor(square).clamp_min(1e-12).sqrt()).mean())

    grid = [
        (a / STEPS, b / STEPS, (STEPS - a - b) / STEPS)
        for a in range(STEPS + 1)
        for b in range(STEPS + 1 - a)
        if predictor is not None or a == 0
    ]
    return max(grid, key=score)


def residual_ridge(source: Dataset, chosen: np.ndarray) -> ResidualRidge:
    """Fit `ResidualRidge` on the source's train split; its penalty and step by chosen sequences."""
    examples = source.examples("val")
    return ResidualRidge(
        source,
        torch.from_numpy(source.bank[examples.last[chosen]]),
        torch.from_numpy(source.bank[examples.target[chosen]]),
    )
