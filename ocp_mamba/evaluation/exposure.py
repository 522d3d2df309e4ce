"""What a predictor learnt from, and how much of an evaluated split it had learnt before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import binom

from ocp_mamba.data.analysis.leakage import STRATA, strata
from ocp_mamba.data.analysis.learnt import Learnt
from ocp_mamba.data.dataset import Dataset

OWN_TRAIN = "the train split of this dataset"
CHANCE_OF_ERRORS = 0.001
"""Chance at which a Bloom filter's errors are more than `Exposure.by_error`."""


@dataclass(frozen=True, eq=False)
class TrainedOn:
    """What a predictor learnt from, as far as it is known.

    Attributes:
        words: what it is, for a person; where it is not known, why.
        learnt: hashes of it; None where it is not known.
        proven: whether the predictor's own file holds the hashes, or this program fitted it. What
            a caller says of a predictor proves nothing.
    """

    words: str
    learnt: Learnt | None = None
    proven: bool = False


@dataclass(frozen=True)
class Exposure:
    """How much of the evaluated examples a predictor had learnt before.

    Attributes:
        words: what it learnt from, or why that is not known.
        known: whether what it learnt from is known, so that strata are.
        proven: as `TrainedOn.proven`.
        learnt: how many evaluated examples it learnt, context and target; None where that was not
            compared, because it learnt from the train split of the evaluated dataset itself, whose
            leak report says it, or where it is not known.
        error_rate: share of other examples that the hashes take for learnt ones; above 0 for a
            Bloom filter.
        by_error: as many of ``learnt`` may be such errors.
    """

    words: str = OWN_TRAIN
    known: bool = True
    proven: bool = True
    learnt: int | None = None
    error_rate: float = 0.0
    by_error: int = 0

    def __str__(self) -> str:
        """One line for a person."""
        if self.learnt is None:
            return self.words
        error = f", error rate {self.error_rate:.1g}" if self.error_rate else ""
        return f"{self.words}; it learnt {self.learnt:,} of the evaluated sequences{error}"


def exposure_of(
    dataset: Dataset, split: str, trained_on: TrainedOn | None
) -> tuple[Exposure, dict[str, np.ndarray]]:
    """Compare a split with what a predictor learnt from.

    Args:
        dataset: what is evaluated.
        split: of it.
        trained_on: None for the train split of ``dataset``.

    Returns:
        How much was learnt, and the strata: masks over ``dataset.examples(split)``, as
        `leakage.strata`; of no examples where it is not known what the predictor learnt from.
    """
    if trained_on is None:
        return Exposure(), strata(dataset, split)
    n = dataset.n_examples(split)
    learnt = trained_on.learnt
    if learnt is None:
        nobody = {name: np.zeros(n, bool) for name in STRATA}
        return Exposure(trained_on.words, known=False, proven=False), nobody
    errors = learnt.examples.error_rate
    exposure = Exposure(
        trained_on.words,
        proven=trained_on.proven,
        learnt=int(learnt.examples_of(dataset, split).sum()),
        error_rate=learnt.error_rate,
        by_error=int(binom.isf(CHANCE_OF_ERRORS, n, errors)) if errors else 0,
    )
    return exposure, learnt.strata(dataset, split)
