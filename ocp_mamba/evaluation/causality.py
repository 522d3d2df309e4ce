"""Whether a predictor sees positions after the one that it predicts from.

A split is predicted in one pass over whole chains, where the answer to a position stands right
after it. So some predictions are made from their contexts alone as well, and must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.data.dataset import Dataset, Examples
from ocp_mamba.evaluation.sensitivity import Contexts, choose

TOLERANCE = 1e-4
"""How far below 1 the cosine may be: float32 sums in another order differ by less than 1e-6."""


@dataclass(frozen=True)
class Causality:
    """Predictions out of whole chains compared with those from their contexts alone.

    Attributes:
        n: how many were compared. Each context goes on in its chain, so there was more to see.
        largest: the largest 1 - cosine between the two; 0 where n is.
    """

    n: int
    largest: float

    @property
    def holds(self) -> bool:
        """Whether the two agree."""
        return self.largest <= TOLERANCE


class PrefixPredictions:
    """Predictions from contexts alone, made before the predictor has seen a whole chain."""

    def __init__(
        self,
        predictor: Predictor,
        dataset: Dataset,
        examples: Examples,
        families: np.ndarray,
        seed: int,
    ) -> None:
        """Predict a seeded sample of the examples whose chain goes on after the context.

        Args:
            predictor: what is evaluated.
            dataset: gives vectors, TMD codes and relations.
            examples: of the split.
            families: integers ``(n,)``, of `data.split.families`.
            seed: draws the sample.
        """
        goes_on = examples.position < dataset.lengths[examples.chain] - 1
        rows = choose(examples, np.flatnonzero(goes_on), seed)
        self._rows = torch.from_numpy(rows)
        self._predicted = None
        if len(rows):
            self._predicted = Contexts(dataset, examples, families, rows).predict(predictor)

    def compare(self, predictions: Tensor) -> Causality:
        """Compare with the predictions out of whole chains, float32 ``(n_examples, D)``."""
        if self._predicted is None:
            return Causality(0, 0.0)
        cosines = torch.cosine_similarity(predictions[self._rows], self._predicted, dim=1)
        return Causality(len(cosines), max(0.0, float((1 - cosines).max())))
