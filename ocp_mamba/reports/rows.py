"""Predictors that were evaluated over several seeds: what their tables share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports.findings import listed
from ocp_mamba.reports.tables import COLUMNS
from ocp_mamba.stats import Figure, mean_over_seeds


@dataclass(frozen=True)
class Row:
    """A predictor, evaluated once for each seed of its training.

    Attributes:
        name: how the table calls it.
        evaluations: one for each seed; a single one where nothing is trained.
        parameters: how many it has; None where nothing is trained.
        minutes: mean time of a training; None where nothing is trained.
    """

    name: str
    evaluations: Sequence[Evaluation]
    parameters: int | None = None
    minutes: float | None = None

    def values(self, column: str) -> np.ndarray:
        """Numbers of the examples that a column is computed over, ``(n_seeds, n)``."""
        metric, stratum = COLUMNS[column]
        chosen = slice(None) if stratum is None else self.evaluations[0].strata[stratum]
        return np.stack([e.per_example[metric][chosen] for e in self.evaluations])

    def figure(self, column: str) -> Figure:
        """Mean over seeds, with its interval over families and seeds."""
        return mean_over_seeds(self.values(column), self._families(column))

    def minus(self, other: Row, column: str) -> Figure:
        """This row minus another: paired by example, and by seed where both have seeds."""
        difference = self.values(column) - other.values(column)
        return mean_over_seeds(difference, self._families(column))

    def _families(self, column: str) -> np.ndarray:
        (_, stratum), first = COLUMNS[column], self.evaluations[0]
        return first.families if stratum is None else first.families[first.strata[stratum]]


def metric_name(column: str) -> str:
    """Return a column's name as a metric of a run: ``unseen_next_vec_cosine``."""
    metric, stratum = COLUMNS[column]
    return metric if stratum is None else f"{stratum}_{metric}"


def seeds_note(seeds: Sequence[int]) -> str:
    """Say which seeds a mean is over, and what its interval covers."""
    if len(seeds) == 1:
        return (
            f"one seed of training, {seeds[0]} [95% interval over families; how much another "
            "seed would change is not in it]"
        )
    return (
        f"mean over the seeds {listed([str(s) for s in seeds])} of training [95% interval over "
        "families and seeds]"
    )


def computed_on(evaluation: Evaluation, seeds: Sequence[int]) -> dict[str, Any]:
    """Return what a table was computed on, as plain values."""
    return {
        "split": evaluation.split,
        "dataset_fingerprint": evaluation.dataset_fingerprint,
        "metrics_version": evaluation.metrics_version,
        "pool_size": evaluation.pool_size,
        "n_examples": evaluation.n_examples,
        "n_chains": evaluation.n_chains,
        "n_families": evaluation.n_families,
        "seeds": list(seeds),
    }
