"""The baselines table: every predictor over several seeds, and what the model beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from ocp_mamba.evaluation.result import Evaluation, require_comparable
from ocp_mamba.reports.findings import COSINE, P1, listed, outcome
from ocp_mamba.stats import Figure, mean_over_seeds

COLUMNS: dict[str, tuple[str, str | None]] = {
    "cosine": (COSINE, None),
    "P@1": (P1, None),
    "cosine, unseen": (COSINE, "unseen"),
    "P@1, unseen": (P1, "unseen"),
}
"""The table's columns: a metric, and the stratum that it is taken over."""


@dataclass(frozen=True)
class Row:
    """A predictor, evaluated once for each seed of its training.

    Attributes:
        name: how the table calls it.
        evaluated: its evaluations, one a seed; a single one where nothing is trained.
        parameters: how many it has; None where nothing is trained.
        minutes: mean time of a training; None where nothing is trained.
    """

    name: str
    evaluated: Sequence[Evaluation]
    parameters: int | None = None
    minutes: float | None = None

    def values(self, metric: str, stratum: str | None) -> np.ndarray:
        """Numbers of the stratum's examples, ``(n_seeds, n)``."""
        chosen = slice(None) if stratum is None else self.evaluated[0].strata[stratum]
        return np.stack([e.per_example[metric][chosen] for e in self.evaluated])


@dataclass(frozen=True)
class Quality:
    """The model's row and all others, over the same examples.

    Attributes:
        model: the model's row.
        others: the rows that it should beat.
        seeds: of the trained rows.
        facts: what else to say below the table, by name.
    """

    model: Row
    others: Sequence[Row]
    seeds: Sequence[int]
    facts: Mapping[str, str]

    def __post_init__(self) -> None:
        """Raise `ValueError` for rows that were not evaluated alike."""
        first = self.model.evaluated[0]
        for row in (self.model, *self.others):
            if len(row.evaluated) not in (1, len(self.model.evaluated)):
                raise ValueError(f"{row.name} has {len(row.evaluated)} seeds")
            for evaluated in row.evaluated:
                require_comparable(first, evaluated, P1)

    @property
    def rows(self) -> list[Row]:
        """The others, and the model last."""
        return [*self.others, self.model]

    def figure(self, row: Row, column: str) -> Figure:
        """Mean over seeds, with its interval over families and seeds."""
        metric, stratum = COLUMNS[column]
        return mean_over_seeds(row.values(metric, stratum), self._families(stratum))

    def difference(self, row: Row, column: str) -> Figure:
        """The model minus a row: paired by example, and by seed where the row has seeds."""
        metric, stratum = COLUMNS[column]
        gap = self.model.values(metric, stratum) - row.values(metric, stratum)
        return mean_over_seeds(gap, self._families(stratum))

    def verdict(self, column: str) -> str:
        """Whether the model beats every row in a column, and where not, which and by how much."""
        gaps = {row.name: self.difference(row, column) for row in self.others}
        if any(gap.value is None for gap in gaps.values()):
            return "not run: no such sequences"
        said = {name: outcome(gap) for name, gap in gaps.items()}
        hardest = min(gaps, key=lambda name: gaps[name].value or 0.0)
        if set(said.values()) == {"beats"}:
            return f"beats every row; the hardest is {hardest}, {gaps[hardest].text('+.4f')}"
        shown = {name: f"{name} ({gap.text('+.4f')})" for name, gap in gaps.items()}
        groups = {
            words: [
                name if words == "beats" else shown[name] for name in said if said[name] == words
            ]
            for words in ("loses to", "ties with", "beats")
        }
        parts = [f"{words} {listed(names)}" for words, names in groups.items() if names]
        return f"does not beat every row: {'; '.join(parts)}"

    def _families(self, stratum: str | None) -> np.ndarray:
        first = self.model.evaluated[0]
        return first.families if stratum is None else first.families[first.strata[stratum]]


def to_markdown(quality: Quality) -> str:
    """Return the table, what it was taken over, and a verdict for each column."""
    first = quality.model.evaluated[0]
    n = {c: quality.figure(quality.model, c).n for c in COLUMNS}
    titles = [
        f"P@1 in {first.pool_size:,}" if c == "P@1" else f"{c} ({n[c]:,})" if "unseen" in c else c
        for c in COLUMNS
    ]
    rows = [
        [
            f"**{row.name}**" if row is quality.model else row.name,
            *(str(quality.figure(row, c)) for c in COLUMNS),
            "" if row.parameters is None else f"{row.parameters:,}",
            "" if row.minutes is None else f"{row.minutes:.1f}",
        ]
        for row in quality.rows
    ]
    table = tabulate(
        rows, ["predictor", *titles, "parameters", "minutes"], tablefmt="github",
        disable_numparse=True,
    )  # fmt: skip
    verdicts = "\n".join(f"- {column}: {quality.verdict(column)}." for column in COLUMNS)
    return (
        f"{table}\n\n{note(quality)}\n\nThe model, {quality.model.name}, by column:\n\n{verdicts}"
    )


def note(quality: Quality) -> str:
    """Say what the figures were taken over, and what their intervals cover."""
    first, seeds = quality.model.evaluated[0], quality.seeds
    over = (
        f"mean over the seeds {listed([str(s) for s in seeds])} of training [95% interval over "
        "families and seeds]"
        if len(seeds) > 1
        else f"one seed of training, {seeds[0]} [95% interval over families; how much another "
        "seed would change is not in it]"
    )
    facts = "".join(f"; {name} {value}" for name, value in quality.facts.items())
    return (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_chains:,} chains in "
        f"{first.n_families:,} families; chance P@1 {first.chance_p1:.5f}; {over}; dataset "
        f"{first.dataset_fingerprint[:12]}, metric version {first.metrics_version}{facts}. "
        "A row is beaten where the 95% interval of the difference, paired by sequence and seed, "
        "lies above 0."
    )


def to_dict(quality: Quality) -> dict[str, Any]:
    """Return the table as plain values: figures, differences and verdicts by row and column."""
    first = quality.model.evaluated[0]
    return {
        "split": first.split,
        "dataset_fingerprint": first.dataset_fingerprint,
        "metrics_version": first.metrics_version,
        "pool_size": first.pool_size,
        "n_examples": first.n_examples,
        "n_chains": first.n_chains,
        "n_families": first.n_families,
        "seeds": list(quality.seeds),
        "facts": dict(quality.facts),
        "rows": [
            {
                "predictor": row.name,
                "parameters": row.parameters,
                "minutes": row.minutes,
                "figures": {c: asdict(quality.figure(row, c)) for c in COLUMNS},
                "each_seed": {
                    c: [float(v) for v in row.values(*COLUMNS[c]).mean(axis=1)]
                    if row.values(*COLUMNS[c]).size
                    else []
                    for c in COLUMNS
                },
                "model_minus_it": None
                if row is quality.model
                else {c: asdict(quality.difference(row, c)) for c in COLUMNS},
            }
            for row in quality.rows
        ],
        "verdicts": {c: quality.verdict(c) for c in COLUMNS},
    }
