"""What an evaluation found, as plain data, and when two of them may be compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ocp_mamba.data.analysis.sample import Sample
from ocp_mamba.embeddings.decoders import VEC2TEXT
from ocp_mamba.evaluation.causality import Causality
from ocp_mamba.evaluation.echo_loop import Parity
from ocp_mamba.evaluation.exposure import Exposure
from ocp_mamba.evaluation.names import COSINE, ECHO, HEADLINE, P1, RECALL
from ocp_mamba.stats import Figure, bootstrap_mean

BANK_ECHO = "bank"
"""The echo encoder of an evaluation that had no live encoder: the bank's own vectors."""
LOGGED = (COSINE, P1, ECHO)
"""Figures that are metrics of a run."""
WHOLE = "whole"
"""The sample fingerprint of an evaluation of a whole dataset."""

COMPARABLE_KEYS = {
    "dataset_fingerprint": "evaluation data",
    "split": "split",
    "sample_fingerprint": "sample evaluated",
    "pool_size": "bank (pool size)",
    "metrics_version": "metric version",
}
"""What two evaluations must share for their numbers to be compared, in words."""
RETRIEVAL_KEYS = {"index": "search index"}
ECHO_KEYS = {"echo_encoder": "echo encoder"}
"""What metrics by the bank's index, and metrics of the echo loop, depend on further."""


@dataclass(frozen=True)
class Evaluation:
    """Metrics of one predictor on one split, with what they were computed on.

    ``figures`` holds a mean with its interval for each metric, and for each metric and stratum
    under ``<stratum>/<metric>``; MLflow's charts have a section for what stands before the slash.
    ``per_example`` holds the numbers behind them, for paired comparison, and ``rank``, the place of
    the target among all bank rows (1 is best; ties count against the predictor). ``found`` holds
    the bank ids of the nearest rows, ``(n, 10)``, best first. Both are in the order of
    ``dataset.examples(split)``, as are ``chains``, ``families`` (which intervals draw whole) and
    the masks of ``strata``. ``scalars`` holds numbers with no interval. ``sample`` is what was
    evaluated where the whole dataset was too large: all counts are the sample's, the fingerprint
    the whole dataset's. ``exposure`` says what the predictor learnt from: the strata are of that.
    ``causality`` says whether it sees what comes after a context; None where nothing was evaluated.
    """

    predictor: str
    split: str
    dataset_fingerprint: str
    metrics_version: str
    n_examples: int
    n_chains: int
    n_families: int
    pool_size: int
    chance_p1: float
    index: str
    echo_encoder: str
    parity: Parity | None
    figures: dict[str, Figure]
    per_example: dict[str, np.ndarray] = field(repr=False)
    chains: np.ndarray = field(repr=False)
    families: np.ndarray = field(repr=False)
    found: np.ndarray = field(repr=False)
    strata: dict[str, np.ndarray] = field(repr=False)
    scalars: dict[str, float]
    sample: Sample | None = None
    exposure: Exposure = field(default_factory=Exposure)
    causality: Causality | None = None

    @property
    def sample_fingerprint(self) -> str:
        """What tells two samples of one dataset apart; ``whole`` where it was evaluated whole."""
        return self.sample.fingerprint if self.sample else WHOLE

    def flat(self) -> dict[str, float]:
        """Return every number by name: each figure, its interval and its number of examples.

        These are ``<name>``, ``interval/<name>_low``, ``interval/<name>_high`` and ``n/<name>``; a
        figure over no examples has its ``n`` of 0 and nothing else.
        """
        numbers: dict[str, float] = {}
        for name, figure in self.figures.items():
            numbers[f"n/{name}"] = figure.n
            if figure.value is not None:
                numbers[name] = figure.value
            if figure.low is not None and figure.high is not None:
                numbers[f"interval/{name}_low"] = figure.low
                numbers[f"interval/{name}_high"] = figure.high
        numbers["retrieval_pool_size"] = self.pool_size
        numbers["retrieval_chance_p1"] = self.chance_p1
        return numbers | self.scalars

    def headline(self) -> dict[str, float | None]:
        """Return the few numbers that a runs table should have, None for one over no examples.

        MLflow makes a chart of each. All others, and the intervals, are in the files of the
        evaluation. No name has a slash: MLflow puts the charts of such names above the others.
        """
        numbers: dict[str, float | None] = {
            name: figure.value for name in LOGGED if (figure := self.figures.get(name))
        }
        for metric in HEADLINE:
            if figure := self.figures.get(f"unseen/{metric}"):
                numbers[f"unseen_{metric}"] = figure.value
        numbers["retrieval_pool_size"] = self.pool_size
        numbers["retrieval_chance_p1"] = self.chance_p1
        if self.parity:
            numbers |= self.parity.figures()
        return numbers | {k: v for k, v in self.scalars.items() if k == RECALL}

    def tags(self) -> dict[str, str]:
        """Return what single numbers cannot say: definitions, and what did not run."""
        decoded = f"{VEC2TEXT}_echo_similarity" in self.figures
        return (self.sample.tags() if self.sample else {}) | {
            "trained_on": str(self.exposure),
            "metrics.version": self.metrics_version,
            "echo_encoder": self.echo_encoder,
            "retrieval.index": self.index,
            "metric.vec2text": "ran" if decoded else "not-run",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return what is worth writing as JSON: all but the numbers of single examples."""
        skipped = ("per_example", "chains", "families", "found", "strata", "figures", "sample")
        plain = {k: v for k, v in vars(self).items() if k not in skipped}
        for name in ("parity", "exposure", "causality"):
            plain[name] = asdict(plain[name]) if plain[name] else None
        plain["sample_fingerprint"] = self.sample_fingerprint
        plain["sample"] = self.sample.to_dict() if self.sample else None
        return plain | {"figures": {name: asdict(f) for name, f in self.figures.items()}}


def paired_difference(
    ours: Evaluation, theirs: Evaluation, metric: str, stratum: str | None = None
) -> Figure:
    """Mean of ours minus theirs over the same examples, with its interval by family.

    Args:
        ours: an evaluation.
        theirs: another one of the same split.
        metric: a key of ``per_example``.
        stratum: a key of ``strata``; None for all examples.

    Raises:
        ValueError: the two were not computed on the same data with the same definitions.
    """
    require_comparable(ours, theirs, metric)
    difference = ours.per_example[metric] - theirs.per_example[metric]
    if stratum is None:
        return bootstrap_mean(difference, ours.families)
    chosen = ours.strata[stratum]
    return bootstrap_mean(difference[chosen], ours.families[chosen])


def require_comparable(ours: Evaluation, theirs: Evaluation, metric: str) -> None:
    """Refuse to compare evaluations by a metric that was computed on different things.

    Raises:
        ValueError: names what differs.
    """
    for key in comparable_keys(metric):
        a, b = getattr(ours, key), getattr(theirs, key)
        if a != b:
            raise ValueError(
                f"{ours.predictor} and {theirs.predictor} differ in {key}: {a} and {b}"
            )


def comparable_keys(metric: str) -> dict[str, str]:
    """Return the attributes that must be equal to compare by a metric, with words for each."""
    by_index = metric.startswith(("faiss", "echo"))
    by_echo = metric.startswith("echo")
    return COMPARABLE_KEYS | (RETRIEVAL_KEYS if by_index else {}) | (ECHO_KEYS if by_echo else {})
