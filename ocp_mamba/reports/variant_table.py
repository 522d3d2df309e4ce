"""The planned variants beside their base: figures, paired differences, the scaling coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tabulate import tabulate

from ocp_mamba.evaluation.result import require_comparable
from ocp_mamba.reports.baseline_table import COLUMNS, Row
from ocp_mamba.reports.findings import COSINE, P1, listed, outcome
from ocp_mamba.stats import Figure, mean_over_seeds, ratio_over_seeds

RAN, NOT_RUN, FAILED = "ran", "not run", "failed"
SCALING_METRICS = {"cosine": COSINE, "P@1": P1}
SCALING_PASSES = 0.85
PASS, FAIL, GATE_NOT_RUN = "pass", "fail", "not-run"


@dataclass(frozen=True)
class Variant:
    """What became of a variant.

    Attributes:
        name: of its preset.
        title: a word or two on what it changes.
        row: its evaluations; None where there are none.
        steps: optimizer steps of one training.
        state: `RAN`, `NOT_RUN` or `FAILED`.
        reason: why it did not run, or what failed; of one that ran, what a reader has to know.
    """

    name: str
    title: str
    row: Row | None = None
    steps: int | None = None
    state: str = RAN
    reason: str = ""

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"{self.name} {self.title}".strip()


@dataclass(frozen=True)
class Scaling:
    """The base on the whole dataset and on half of its concepts, evaluated on the same examples.

    These are the val examples of the half. The half's model searches the half's bank, the whole's
    model the whole one.

    Attributes:
        values: by metric, the examples' numbers on the whole and on the half, ``(n_seeds, n)``.
        families: ``(n,)``, of each example.
        sizes: what there is of, by name, in the whole and in the half.
        minutes: mean time of a training on the half.
        state: `RAN`, `NOT_RUN` or `FAILED`.
        reason: as in `Variant`.
    """

    values: Mapping[str, tuple[np.ndarray, np.ndarray]]
    families: np.ndarray
    sizes: Mapping[str, tuple[int, int]]
    minutes: float | None = None
    state: str = RAN
    reason: str = ""

    def coefficient(self, name: str) -> Figure:
        """Metric on twice the concepts over metric on the half, with its interval."""
        above, below = self.values[name]
        return ratio_over_seeds(above, below, self.families)

    def gate(self, name: str) -> str:
        """``pass`` from 0.85 on, ``fail`` below, ``not-run`` where there is no ratio."""
        if self.state != RAN:
            return GATE_NOT_RUN
        value = self.coefficient(name).value
        if value is None:
            return GATE_NOT_RUN
        return PASS if value >= SCALING_PASSES else FAIL


@dataclass(frozen=True)
class Comparison:
    """All variants that were asked for, against the base, over the same examples and seeds."""

    base: Variant
    variants: Sequence[Variant]
    scaling: Scaling | None
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Raise `ValueError` for rows that were not evaluated alike."""
        assert self.base.row is not None
        for variant in self.variants:
            for evaluated in variant.row.evaluated if variant.row else ():
                require_comparable(self.base.row.evaluated[0], evaluated, P1)

    @property
    def failed(self) -> list[str]:
        """Names of what failed."""
        scaling = [self.scaling] if self.scaling is not None else []
        names = [v.name for v in self.variants if v.state == FAILED]
        return names + ["scaling" for s in scaling if s.state == FAILED]

    def figure(self, variant: Variant, column: str) -> Figure:
        """Mean over seeds, with its interval over families and seeds."""
        metric, stratum = COLUMNS[column]
        assert variant.row is not None
        return mean_over_seeds(variant.row.values(metric, stratum), self._families(stratum))

    def difference(self, variant: Variant, column: str) -> Figure:
        """The variant minus the base, paired by example and seed."""
        metric, stratum = COLUMNS[column]
        assert variant.row is not None
        assert self.base.row is not None
        gap = variant.row.values(metric, stratum) - self.base.row.values(metric, stratum)
        return mean_over_seeds(gap, self._families(stratum))

    def _families(self, stratum: str | None) -> np.ndarray:
        assert self.base.row is not None
        first = self.base.row.evaluated[0]
        return first.families if stratum is None else first.families[first.strata[stratum]]


def to_markdown(comparison: Comparison) -> str:
    """Return the figures, the differences to the base, the scaling coefficient, and their terms."""
    parts = [_figures(comparison), _differences(comparison)]
    if comparison.scaling is not None:
        parts.append(scaling_text(comparison.scaling))
    return "\n\n".join([*parts, note(comparison)])


def _figures(comparison: Comparison) -> str:
    rows = []
    for variant in (comparison.base, *comparison.variants):
        row = variant.row
        if row is None:
            rows.append([variant.label, f"{variant.state}: {variant.reason}"])
            continue
        rows.append(
            [
                variant.label,
                *(str(comparison.figure(variant, column)) for column in COLUMNS),
                f"{row.parameters:,}",
                f"{variant.steps:,}",
                f"{row.minutes:.1f}",
            ]
        )
    return _table(rows, ["variant", *COLUMNS, "parameters", "steps", "minutes"])


def _differences(comparison: Comparison) -> str:
    rows = []
    for variant in comparison.variants:
        if variant.row is None:
            continue
        gaps = {column: comparison.difference(variant, column) for column in COLUMNS}
        rows.append([variant.label, *map(_gap, gaps.values())])
    return _table(rows, ["minus the base", *COLUMNS]) if rows else "No variant to compare."


def _gap(figure: Figure) -> str:
    """A difference; bold where its interval lies off zero."""
    text = figure.text("+.4f")
    return f"**{text}**" if outcome(figure) != "ties with" and figure.value is not None else text


def _table(rows: Sequence[Sequence[str]], headers: Sequence[str]) -> str:
    whole = [[*row, *[""] * (len(headers) - len(row))] for row in rows]
    return tabulate(whole, headers, tablefmt="github", disable_numparse=True)


def scaling_text(scaling: Scaling) -> str:
    """Return the scaling coefficient of each metric in a sentence."""
    if scaling.state != RAN:
        return f"Scaling coefficient: {scaling.state}: {scaling.reason}."
    said = []
    for name in SCALING_METRICS:
        figure = scaling.coefficient(name)
        shown = "no ratio, the half's is not above 0" if figure.value is None else str(figure)
        said.append(f"{name} {shown}: {scaling.gate(name)}")
    sizes = "; ".join(f"{name} {n:,} and {half:,}" for name, (n, half) in scaling.sizes.items())
    return (
        f"Scaling coefficient, the base on all concepts over the base on half of them ("
        f"{SCALING_PASSES} or more passes): {'; '.join(said)}. Both are evaluated on the half's "
        f"{len(scaling.families):,} val sequences, each in its own bank ({sizes}); "
        f"{scaling.minutes:.1f} minutes on the half."
    )


def note(comparison: Comparison) -> str:
    """Say what the figures were taken over, and what their intervals cover."""
    assert comparison.base.row is not None
    first, seeds = comparison.base.row.evaluated[0], comparison.seeds
    over = (
        f"mean over the seeds {listed([str(s) for s in seeds])} of training [95% interval over "
        "families and seeds]"
        if len(seeds) > 1
        else f"one seed of training, {seeds[0]} [95% interval over families; how much another seed "
        "would change is not in it]"
    )
    notes = "".join(
        f" {v.name}: {v.reason}." for v in comparison.variants if v.state == RAN and v.reason
    )
    return (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_families:,} families, "
        f"pool {first.pool_size:,}, chance P@1 {first.chance_p1:.5f}; {over}; differences are "
        "paired by sequence and seed, bold where the interval lies off zero, and not corrected for "
        f"the number of variants; dataset {first.dataset_fingerprint[:12]}, metric version "
        f"{first.metrics_version}.{notes}"
    )


def drawn(comparison: Comparison) -> dict[str, dict[str, Figure]]:
    """Return what the plot shows: each column's figure of each variant that has any."""
    return {
        variant.name: {column: comparison.figure(variant, column) for column in COLUMNS}
        for variant in (comparison.base, *comparison.variants)
        if variant.row is not None
    }


def numbers(comparison: Comparison) -> dict[str, float | None]:
    """Return figures and differences by names for a tracker: ``1B/next_vec_cosine`` and so on."""
    flat: dict[str, float | None] = {}
    for variant in (comparison.base, *comparison.variants):
        if variant.row is None:
            continue
        for column, (metric, stratum) in COLUMNS.items():
            name = metric if stratum is None else f"{stratum}_{metric}"
            flat |= _with_interval(f"{variant.name}/{name}", comparison.figure(variant, column))
            if variant is not comparison.base:
                gap = comparison.difference(variant, column)
                flat |= _with_interval(f"{variant.name}/minus_base_{name}", gap)
        flat[f"{variant.name}/train_time_minutes"] = variant.row.minutes
    if comparison.scaling is not None and comparison.scaling.state == RAN:
        for name, metric in SCALING_METRICS.items():
            figure = comparison.scaling.coefficient(name)
            flat |= _with_interval(f"scaling/{metric}", figure)
    return flat


def _with_interval(name: str, figure: Figure) -> dict[str, float | None]:
    flat = {name: figure.value}
    if figure.low is not None and figure.high is not None:
        flat |= {f"{name}_low": figure.low, f"{name}_high": figure.high}
    return flat


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return everything as plain values."""
    assert comparison.base.row is not None
    first, scaling = comparison.base.row.evaluated[0], comparison.scaling
    return {
        "split": first.split,
        "dataset_fingerprint": first.dataset_fingerprint,
        "metrics_version": first.metrics_version,
        "pool_size": first.pool_size,
        "n_examples": first.n_examples,
        "n_families": first.n_families,
        "seeds": list(comparison.seeds),
        "variants": [
            {
                "name": v.name,
                "title": v.title,
                "state": v.state,
                "reason": v.reason,
                "parameters": v.row.parameters if v.row else None,
                "steps": v.steps,
                "minutes": v.row.minutes if v.row else None,
                "figures": {c: asdict(comparison.figure(v, c)) for c in COLUMNS} if v.row else {},
                "minus_base": {c: asdict(comparison.difference(v, c)) for c in COLUMNS}
                if v.row and v is not comparison.base
                else {},
            }
            for v in (comparison.base, *comparison.variants)
        ],
        "scaling": scaling
        and {
            "state": scaling.state,
            "reason": scaling.reason,
            "passes_from": SCALING_PASSES,
            "sizes": {name: list(pair) for name, pair in scaling.sizes.items()},
            "minutes": scaling.minutes,
            "coefficients": {
                name: asdict(scaling.coefficient(name)) | {"gate": scaling.gate(name)}
                for name in SCALING_METRICS
                if scaling.state == RAN
            },
        },
    }
