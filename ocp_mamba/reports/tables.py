"""Tables of metrics with their intervals: one description of a table, for terminal and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from ocp_mamba.evaluation.gates import as_verdict
from ocp_mamba.evaluation.names import COSINE, LABELS, VAL_P1
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.stats import Figure
from ocp_mamba.training.history import EpochRecord

COLUMNS: dict[str, tuple[str, str | None]] = {
    f"{label}{words}": (metric, stratum)
    for words, stratum in {"": None, ", unseen": "unseen"}.items()
    for label, metric in LABELS.items()
}
"""Columns that every table of predictors has: a metric, and the stratum it is computed over."""
FIGURES = {c: m if s is None else f"{s}/{m}" for c, (m, s) in COLUMNS.items()}
"""The same columns by the names of an evaluation's figures."""
GATE_COLUMNS = ("gate", "verdict", "value", "threshold", "reason")
BEST = "best"
GITHUB = "github"
REASON_WIDTH = 60


@dataclass(frozen=True)
class Cell:
    """One cell: words, or a metric with its interval.

    Attributes:
        content: words, a figure, or None for what was not computed.
        form: number format of a figure.
        kind: classes of the page's style sheet; `BEST` is bold in Markdown, too.
        note: small words below, on a page only.
    """

    content: str | Figure | None
    form: str = ".3f"
    kind: str = ""
    note: str = ""

    @property
    def value(self) -> str:
        """The words, or the figure without its interval."""
        if isinstance(self.content, str):
            return self.content
        if self.content is None or self.content.value is None:
            return "not run"
        return f"{self.content.value:{self.form}}"

    @property
    def small(self) -> str:
        """What stands below the value on a page: the interval, then the note."""
        found = isinstance(self.content, Figure) and self.content.value is not None
        interval = self.content.interval(self.form) if found else ""  # type: ignore[union-attr]
        return f"{interval} {self.note}".strip()

    def text(self, tablefmt: str) -> str:
        """The whole cell in one line."""
        figure = isinstance(self.content, Figure)
        text = self.content.text(self.form) if figure else self.value  # type: ignore[union-attr]
        return f"**{text}**" if self.kind == BEST and tablefmt == GITHUB else text


Content = Cell | Figure | str | None


@dataclass(frozen=True)
class Table:
    """Rows of cells below their headers; a page marks row number ``ours``.

    ``caption`` stands below the table on a page.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[Content]]
    caption: str = ""
    ours: int = -1

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, each entry a cell."""
        return [[c if isinstance(c, Cell) else Cell(c) for c in row] for row in self.rows]

    def to_text(self, tablefmt: str = "simple") -> str:
        """Return the table in one of tabulate's formats; short rows are filled up."""
        rows = [[cell.text(tablefmt) for cell in row] for row in self.cells]
        whole = [[*row, *[""] * (len(self.headers) - len(row))] for row in rows]
        return tabulate(whole, self.headers, tablefmt=tablefmt, disable_numparse=True)


def epoch_table(history: Sequence[EpochRecord]) -> str:
    """Return the epochs as a table: cosine, retrieval, trend, loss, seconds; * marks the best."""
    best = max((r.epoch for r in history if r.is_best), default=None)
    rows = [
        [
            f"{r.epoch}{'*' if r.epoch == best else ''}",
            r.val[COSINE],
            r.val.get(VAL_P1),
            r.improvement_trend,
            r.losses["total"],
            r.seconds,
        ]
        for r in history
    ]
    headers = ["epoch", "val cosine", "val P@1", "trend", "train loss", "seconds"]
    floats = ("", ".4f", ".4f", "+.4f", ".4f", ".1f")
    return tabulate(rows, headers=headers, floatfmt=floats, missingval="-")


def baseline_table(evaluations: Mapping[str, Evaluation]) -> str:
    """Return one row a predictor: cosine and P@1, overall and on unseen transitions.

    The last line says what the numbers were computed on: a P@1 means nothing without its pool.
    """
    rows = [
        [name, *(evaluation.figures.get(key) for key in FIGURES.values())]
        for name, evaluation in evaluations.items()
    ]
    first = next(iter(evaluations.values()))
    unseen = first.figures.get(f"unseen/{COSINE}")
    note = (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_chains:,} chains in "
        f"{first.n_families:,} families, {unseen.n if unseen else 0:,} unseen transitions; "
        f"pool {first.pool_size:,} concepts, chance P@1 {first.chance_p1:.5f}; "
        "[95% interval, by family]"
    )
    if first.sample:
        note += f"\nevaluated on {first.sample}"
    return f"{Table(['predictor', *FIGURES], rows).to_text()}\n{note}"


def result_table(
    numbers: Mapping[str, float], gates: Mapping[str, str], shown: Sequence[str]
) -> str:
    """Return headline metrics with their intervals, then each gate's verdict with its words.

    Args:
        numbers: metrics by name, with ``interval/<name>_low`` and ``_high`` where there are any.
        gates: verdicts by name.
        shown: the metrics to show, in order; one that is absent is shown as ``not-run``.
    """
    rows = []
    for name in shown:
        value = numbers.get(name)
        low, high = (numbers.get(f"interval/{name}_{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        rows.append([name, "not-run" if value is None else f"{value:.4f}", interval])
    metrics = Table(["metric", "value", "95% interval"], rows).to_text()
    return f"{metrics}\n\n{gate_table(gates)}"


def gate_table(gates: Mapping[str, str]) -> str:
    """Return each gate with its verdict, value, threshold and reason, for a terminal."""
    rows = []
    for name, given in gates.items():
        verdict = as_verdict(given)
        rows.append([name, str(verdict), verdict.value, verdict.threshold, verdict.reason])
    return tabulate(
        rows, GATE_COLUMNS, disable_numparse=True, maxcolwidths=[None, None, 28, 28, REASON_WIDTH]
    )
