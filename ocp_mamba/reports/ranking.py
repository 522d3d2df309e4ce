"""Ranking of evaluated runs; runs that are not comparable are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.errors import CompareError
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.result import COMPARABLE_KEYS, WHOLE, comparable_keys
from ocp_mamba.reports.findings import BAD, OPEN, outcome
from ocp_mamba.reports.html import render
from ocp_mamba.reports.plots import as_png, intervals_figure
from ocp_mamba.reports.tables import BEST, GITHUB, Cell, Table
from ocp_mamba.stats import Figure, bootstrap_mean

SIGNIFICANT = {"beats": "significant", "loses to": "significant", "ties with": "not significant"}
TONES = {"best": "", "significant": BAD, "not significant": OPEN}
HEADERS = ("run", "predictor", "value", "minus the best", "")


@dataclass(frozen=True)
class Candidate:
    """An evaluated run.

    Attributes:
        run_id: its id.
        name: how tables call it; no two candidates share one.
        evaluation: what ``evaluation.json`` holds.
        per_example: what ``per_example.npz`` holds: each metric, ``chains``, ``families``,
            ``stratum/<name>``.
    """

    run_id: str
    name: str
    evaluation: Mapping[str, Any]
    per_example: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """A candidate's figure, and its paired difference to the best candidate (None for the best)."""

    candidate: Candidate
    figure: Figure
    behind: Figure | None

    @property
    def verdict(self) -> str:
        """``best``, ``significant`` or ``not significant``."""
        return "best" if self.behind is None else SIGNIFICANT[outcome(self.behind)]


@dataclass(frozen=True)
class Comparison:
    """Candidates from the best to the worst by one metric on one stratum."""

    metric: str
    stratum: str
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        """The metric with its stratum, as metrics are named."""
        return self.metric if self.stratum == "all" else f"{self.stratum}/{self.metric}"

    @property
    def table(self) -> Table:
        """The ranking, the best first."""
        rows = [
            [
                Cell(row.candidate.name, note=row.candidate.run_id),
                str(row.candidate.evaluation["predictor"]),
                Cell(row.figure, kind=BEST if row.behind is None else ""),
                "" if row.behind is None else Cell(row.behind, "+.4f"),
                Cell(row.verdict, kind=TONES[row.verdict]),
            ]
            for row in self.rows
        ]
        return Table(HEADERS, rows, ours=0)

    @property
    def note(self) -> str:
        """What the numbers were computed on."""
        shared = self.rows[0].candidate.evaluation
        sample = shared.get("sample")
        evaluated = f"Evaluated on {sample['said']}. " if sample else ""
        return (
            evaluated
            + f"{self.label} on {self.rows[0].figure.n:,} sequences of the {shared['split']} split "
            f"of dataset {shared['dataset_fingerprint'][:12]}, pool {shared['pool_size']:,}, "
            f"metric version {shared['metrics_version']}. [95% interval, by family]. A difference "
            "is paired over the same sequences, and significant where its interval does not "
            "contain zero; it is not corrected for the number of runs."
        )


def compare(candidates: Sequence[Candidate], metric: str, stratum: str = "all") -> Comparison:
    """Rank candidates by a metric, higher first.

    Args:
        candidates: two or more.
        metric: a name of ``per_example``, the higher the better.
        stratum: "all", "seen", "unseen" or "unseen_target".

    Raises:
        CompareError: fewer than two, or they differ in data, split, bank or metric version, or the
            stratum is empty.
    """
    if len(candidates) < 2:
        raise CompareError("a comparison needs two runs or more")
    _require_comparable(candidates, metric)
    families, chosen = _examples(candidates, metric, stratum)
    values = {c.run_id: c.per_example[metric][chosen].astype(np.float64) for c in candidates}
    order = sorted(candidates, key=lambda c: -values[c.run_id].mean())
    best = values[order[0].run_id]
    rows = [
        Row(
            c,
            bootstrap_mean(values[c.run_id], families),
            None if c is order[0] else bootstrap_mean(values[c.run_id] - best, families),
        )
        for c in order
    ]
    return Comparison(metric, stratum, rows)


def _require_comparable(candidates: Sequence[Candidate], metric: str) -> None:
    """Refuse runs that differ from the first in what the metric depends on; names all of them."""
    first, *others = candidates
    found = [
        f"  {other.name} differs from {first.name} in {words}: "
        f"{_short(_known(other, key))}, not {_short(_known(first, key))}"
        for other in others
        for key, words in comparable_keys(metric).items()
        if _known(other, key) != _known(first, key)
    ]
    if found:
        raise CompareError(
            "these runs are not ranked: they were not evaluated on the same thing\n"
            + "\n".join(found)
            + "\nEvaluate them again on one dataset and split: ocp-mamba evaluate --help"
        )
    if first.evaluation.get("metrics_version") != METRICS_VERSION:
        raise CompareError(
            "these runs were evaluated by metric version "
            f"{first.evaluation.get('metrics_version')}; this version of ocp-mamba ranks metrics "
            f"of version {METRICS_VERSION}: evaluate them again"
        )


def _known(candidate: Candidate, key: str) -> object:
    """A value of an evaluation; one from before there were samples was of the whole dataset."""
    return candidate.evaluation.get(key, WHOLE if key == "sample_fingerprint" else None)


def _short(value: object) -> str:
    return str(value)[:16]


def _examples(
    candidates: Sequence[Candidate], metric: str, stratum: str
) -> tuple[np.ndarray, np.ndarray]:
    """The families of the chosen examples, and a mask of these over all examples."""
    first = candidates[0]
    chains = first.per_example["chains"]
    for candidate in candidates:
        if metric not in candidate.per_example:
            raise CompareError(f"{candidate.name} was not evaluated by {metric}")
        if not np.array_equal(candidate.per_example["chains"], chains):
            raise CompareError(
                f"{candidate.name} and {first.name} name the same data, "
                "yet their sequences differ; evaluate them again with one version of ocp-mamba"
            )
    everything = np.ones(len(chains), bool)
    chosen = everything if stratum == "all" else first.per_example[f"stratum/{stratum}"]
    if not chosen.any():
        raise CompareError(f"the stratum {stratum!r} has no sequences in this split")
    return first.per_example["families"][chosen], chosen


def to_text(comparison: Comparison, tablefmt: str = "simple") -> str:
    """Return the ranking as a table, and its note, in one of tabulate's formats."""
    return f"{comparison.table.to_text(tablefmt)}\n\n{comparison.note}"


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write ``compare.md``, ``compare.html`` and ``compare.png``; returns the files.

    Args:
        comparison: what to write.
        folder: where; made where it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"compare.{ending}" for ending in ("md", "html", "png")]
    title = f"{len(comparison.rows)} runs by {comparison.label}"
    files[0].write_text(f"# {title}\n\n{to_text(comparison, GITHUB)}\n", encoding="utf-8")
    figures = {row.candidate.name: row.figure for row in comparison.rows}
    drawing = intervals_figure(figures, comparison.label)
    drawing.savefig(files[2])
    first = comparison.rows[0].candidate
    page = render(
        "ranking.html",
        title=title,
        facts={words: str(_known(first, key)) for key, words in COMPARABLE_KEYS.items()},
        table=comparison.table,
        note=comparison.note,
        drawing=as_png(drawing),
        label=comparison.label,
    )
    files[1].write_text(page, encoding="utf-8")
    return files
