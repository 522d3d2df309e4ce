"""The table of variants: metrics, paired differences to the base, the scaling coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.names import LABELS, P1, TRAIN_MINUTES
from ocp_mamba.evaluation.result import Evaluation, require_comparable
from ocp_mamba.reports.findings import outcome
from ocp_mamba.reports.rows import Row, computed_on, metric_name, seeds_note
from ocp_mamba.reports.tables import BEST, COLUMNS, GITHUB, Cell, Content, Table
from ocp_mamba.stats import Figure, ratio_over_seeds

RAN, NOT_RUN, FAILED = "ran", "not run", "failed"
SCALING_METRICS = LABELS
SCALING_PASSES = 0.85


@dataclass(frozen=True)
class Variant:
    """A planned variant, and its evaluations or why there are none.

    Attributes:
        name: of its preset.
        code: of its preset, or empty.
        row: its evaluations; None where there are none.
        steps: optimizer steps of one training.
        state: `RAN`, `NOT_RUN` or `FAILED`.
        reason: why it did not run, or what failed; of one that ran, what a reader has to know.
    """

    name: str
    code: str
    row: Row | None = None
    steps: int | None = None
    state: str = RAN
    reason: str = ""

    @property
    def label(self) -> str:
        """How tables call it."""
        return f"{self.name} {self.code}".strip()


@dataclass(frozen=True)
class Scaling:
    """The base on the whole dataset and on half of its concepts, evaluated on the same examples.

    These are the val examples of the half. The half's model searches the half's bank, the whole's
    model the whole one.

    Attributes:
        values: by metric, the examples' numbers on the whole and on the half, ``(n_seeds, n)``.
        families: ``(n,)``, of each example.
        sizes: counts by what is counted, in the whole and in the half.
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
            return gates.NOT_RUN
        value = self.coefficient(name).value
        if value is None:
            return gates.NOT_RUN
        return gates.PASS if value >= SCALING_PASSES else gates.FAIL


@dataclass(frozen=True)
class Comparison:
    """All variants that were asked for, against the base, over the same examples and seeds."""

    base: Variant
    variants: Sequence[Variant]
    scaling: Scaling | None
    seeds: Sequence[int]

    def __post_init__(self) -> None:
        """Raise `ValueError` for rows that were not evaluated on the same examples."""
        for variant in self.variants:
            for evaluation in variant.row.evaluations if variant.row else ():
                require_comparable(self.first, evaluation, P1)

    @property
    def first(self) -> Evaluation:
        """The base's evaluation of its first seed."""
        return _row(self.base).evaluations[0]

    @property
    def failed(self) -> list[str]:
        """Names of what failed."""
        scaling = [self.scaling] if self.scaling is not None else []
        names = [v.name for v in self.variants if v.state == FAILED]
        return names + ["scaling" for s in scaling if s.state == FAILED]

    @property
    def evaluated(self) -> list[Variant]:
        """The base and the variants that have evaluations."""
        return [v for v in (self.base, *self.variants) if v.row is not None]

    def figure(self, variant: Variant, column: str) -> Figure:
        """Mean over seeds, with its interval over families and seeds."""
        return _row(variant).figure(column)

    def difference(self, variant: Variant, column: str) -> Figure:
        """The variant minus the base, paired by example and seed."""
        return _row(variant).minus(_row(self.base), column)


def _row(variant: Variant) -> Row:
    assert variant.row is not None, f"{variant.name} was not evaluated"
    return variant.row


def to_markdown(comparison: Comparison) -> str:
    """Return the figures, the differences to the base, the scaling coefficient, and a note."""
    parts = [_figures(comparison), _differences(comparison)]
    if comparison.scaling is not None:
        parts.append(scaling_text(comparison.scaling))
    return "\n\n".join([*parts, note(comparison)])


def _figures(comparison: Comparison) -> str:
    rows: list[list[Content]] = []
    for variant in (comparison.base, *comparison.variants):
        row = variant.row
        if row is None:
            rows.append([variant.label, f"{variant.state}: {variant.reason}"])
            continue
        figures = [row.figure(column) for column in COLUMNS]
        cost = [f"{row.parameters:,}", f"{variant.steps:,}", f"{row.minutes:.1f}"]
        rows.append([variant.label, *figures, *cost])
    return Table(["variant", *COLUMNS, "parameters", "steps", "minutes"], rows).to_text(GITHUB)


def _differences(comparison: Comparison) -> str:
    """The variants minus the base; bold where the interval does not contain zero."""
    rows: list[list[Content]] = []
    for variant in comparison.evaluated[1:]:
        differences = [comparison.difference(variant, column) for column in COLUMNS]
        cells = [Cell(d, "+.4f", "" if outcome(d) == "ties with" else BEST) for d in differences]
        rows.append([variant.label, *cells])
    if not rows:
        return "No variant to compare."
    return Table(["minus the base", *COLUMNS], rows).to_text(GITHUB)


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
    """Say what the metrics were computed on, and what their intervals cover."""
    first = comparison.first
    notes = "".join(
        f" {v.name}: {v.reason}." for v in comparison.variants if v.state == RAN and v.reason
    )
    return (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_families:,} families, "
        f"pool {first.pool_size:,}, chance P@1 {first.chance_p1:.5f}; "
        f"{seeds_note(comparison.seeds)}; differences are paired by sequence and seed, bold where "
        "the interval does not contain zero, and not corrected for the number of variants; "
        f"dataset {first.dataset_fingerprint[:12]}, metric version {first.metrics_version}.{notes}"
    )


def drawn(comparison: Comparison) -> dict[str, dict[str, Figure]]:
    """Return what the plot shows: each column's figure of each variant that has any."""
    return {
        variant.name: {column: comparison.figure(variant, column) for column in COLUMNS}
        for variant in comparison.evaluated
    }


def numbers(comparison: Comparison) -> dict[str, float | None]:
    """Return figures and differences by names for a tracker: ``1B/next_vec_cosine`` and so on.

    Their intervals are in `to_dict` only: a tracker draws a chart of each number.
    """
    flat: dict[str, float | None] = {}
    for variant in comparison.evaluated:
        for column in COLUMNS:
            name = metric_name(column)
            flat[f"{variant.name}/{name}"] = comparison.figure(variant, column).value
            if variant is not comparison.base:
                difference = comparison.difference(variant, column)
                flat[f"{variant.name}/minus_base_{name}"] = difference.value
        flat[f"{variant.name}/{TRAIN_MINUTES}"] = _row(variant).minutes
    if comparison.scaling is not None and comparison.scaling.state == RAN:
        for name, metric in SCALING_METRICS.items():
            flat[f"scaling/{metric}"] = comparison.scaling.coefficient(name).value
    return flat


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Return everything as plain values."""
    scaling = comparison.scaling
    return {
        **computed_on(comparison.first, comparison.seeds),
        "variants": [
            {
                "name": v.name,
                "code": v.code,
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
