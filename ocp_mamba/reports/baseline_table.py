"""The baselines table: every predictor over several seeds, and what the model beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ocp_mamba.evaluation.names import P1
from ocp_mamba.evaluation.result import require_comparable
from ocp_mamba.reports.findings import listed, outcome
from ocp_mamba.reports.rows import Row, computed_on, seeds_note
from ocp_mamba.reports.tables import BEST, COLUMNS, GITHUB, Cell, Content, Table
from ocp_mamba.stats import Figure


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
        """Raise `ValueError` for rows that were not evaluated on the same examples."""
        first = self.model.evaluations[0]
        for row in self.rows:
            if len(row.evaluations) not in (1, len(self.model.evaluations)):
                raise ValueError(f"{row.name} has {len(row.evaluations)} seeds")
            for evaluation in row.evaluations:
                require_comparable(first, evaluation, P1)

    @property
    def rows(self) -> list[Row]:
        """The others, and the model last."""
        return [*self.others, self.model]

    def figure(self, row: Row, column: str) -> Figure:
        """Mean over seeds, with its interval over families and seeds."""
        return row.figure(column)

    def difference(self, row: Row, column: str) -> Figure:
        """The model minus a row: paired by example, and by seed where the row has seeds."""
        return self.model.minus(row, column)

    def verdict(self, column: str) -> str:
        """Whether the model beats every row in a column, and where not, which and by how much."""
        leads = {row.name: self.difference(row, column) for row in self.others}
        if any(lead.value is None for lead in leads.values()):
            return "not run: no such sequences"
        outcomes = {name: outcome(lead) for name, lead in leads.items()}
        closest = min(leads, key=lambda name: leads[name].value or 0.0)
        if set(outcomes.values()) == {"beats"}:
            return f"beats every row; the closest is {closest}, {leads[closest].text('+.4f')}"
        shown = {name: f"{name} ({lead.text('+.4f')})" for name, lead in leads.items()}
        groups = {
            words: [
                name if words == "beats" else shown[name]
                for name in outcomes
                if outcomes[name] == words
            ]
            for words in ("loses to", "ties with", "beats")
        }
        parts = [f"{words} {listed(names)}" for words, names in groups.items() if names]
        return f"does not beat every row: {'; '.join(parts)}"


def to_markdown(quality: Quality) -> str:
    """Return the table, what it was computed on, and a verdict for each column."""
    first = quality.model.evaluations[0]
    n = {column: quality.model.figure(column).n for column in COLUMNS}
    titles = [
        f"P@1 in {first.pool_size:,}" if c == "P@1" else f"{c} ({n[c]:,})" if "unseen" in c else c
        for c in COLUMNS
    ]
    rows: list[list[Content]] = [
        [
            Cell(row.name, kind=BEST if row is quality.model else ""),
            *(row.figure(column) for column in COLUMNS),
            "" if row.parameters is None else f"{row.parameters:,}",
            "" if row.minutes is None else f"{row.minutes:.1f}",
        ]
        for row in quality.rows
    ]
    table = Table(["predictor", *titles, "parameters", "minutes"], rows).to_text(GITHUB)
    verdicts = "\n".join(f"- {column}: {quality.verdict(column)}." for column in COLUMNS)
    return (
        f"{table}\n\n{note(quality)}\n\nThe model, {quality.model.name}, by column:\n\n{verdicts}"
    )


def note(quality: Quality) -> str:
    """Say what the metrics were computed on, and what their intervals cover."""
    first = quality.model.evaluations[0]
    facts = "".join(f"; {name} {value}" for name, value in quality.facts.items())
    return (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_chains:,} chains in "
        f"{first.n_families:,} families; chance P@1 {first.chance_p1:.5f}; "
        f"{seeds_note(quality.seeds)}; dataset {first.dataset_fingerprint[:12]}, metric version "
        f"{first.metrics_version}{facts}. A row is beaten where the 95% interval of the "
        "difference, paired by sequence and seed, lies above 0."
    )


def to_dict(quality: Quality) -> dict[str, Any]:
    """Return the table as plain values: figures, differences and verdicts by row and column."""
    return {
        **computed_on(quality.model.evaluations[0], quality.seeds),
        "facts": dict(quality.facts),
        "rows": [
            {
                "predictor": row.name,
                "parameters": row.parameters,
                "minutes": row.minutes,
                "figures": {c: asdict(row.figure(c)) for c in COLUMNS},
                "each_seed": {
                    c: [float(v) for v in row.values(c).mean(axis=1)] if row.values(c).size else []
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
