"""The description of a run in MLflow: its verdict in words, its gates, and where the rest is."""

from __future__ import annotations

from collections.abc import Mapping

from tabulate import tabulate

from ocp_mamba.data.analysis.leakage import LeakReport
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports.evaluation_page import Report
from ocp_mamba.reports.findings import statements
from ocp_mamba.reports.tables import FIGURES, GATE_COLUMNS, GITHUB, Table

LONGEST = 4800
"""Characters: a store takes 5,000 in a tag, which is where MLflow keeps a description."""


def run_note(report: Report) -> str:
    """Return a run's description in Markdown: verdict, gates, baselines, what was evaluated."""
    evaluation = report.evaluation
    said = [s.sentence for s in statements(evaluation, report.baselines, report.dataset)]
    parts = [
        f"**{verdict_line(report.gates)}**",
        " ".join(said) or "Nothing was evaluated: the split has no sequences.",
        gates_as_markdown(report.gates),
        _predictors(report.all_evaluations),
        f"{evaluation.n_examples:,} sequences of the {evaluation.split} split, in "
        f"{evaluation.n_families:,} families; P@1 among {evaluation.pool_size:,} concepts, by "
        f"chance {evaluation.chance_p1:.2g}. Learnt from {evaluation.exposure}. Every other number "
        "and all intervals: artifacts `reports/report.html` and `reports/evaluation.json`.",
    ]
    return _fitting(parts)


def check_note(leaks: LeakReport, verdicts: Mapping[str, str]) -> str:
    """Return the description of a run that checked a dataset: its warnings, and what it is like."""
    rest = "Every number: artifacts `reports/leak_report.md` and `reports/leak_report.json`."
    return _fitting(
        [f"**{verdict_line(verdicts)}**", leaks.summary(), gates_as_markdown(verdicts), rest]
    )


def verdict_line(verdicts: Mapping[str, str]) -> str:
    """Return which gates failed and which did not run, in one line."""
    failed = gates.failed(verdicts)
    absent = [name for name, verdict in verdicts.items() if verdict == gates.NOT_RUN]
    passed = len(verdicts) - len(failed) - len(absent)
    line = f"Failed gates: {', '.join(failed)}." if failed else "No gate failed."
    line += f" {passed} passed."
    return line + (f" Not run: {', '.join(absent)}." if absent else "")


def gates_as_markdown(verdicts: Mapping[str, str]) -> str:
    """Return each gate with its verdict, value, threshold and reason; what failed stands first."""
    order = {gates.FAIL: 0, gates.NOT_RUN: 1, gates.PASS: 2}
    rows = []
    for name, given in sorted(verdicts.items(), key=lambda item: order.get(str(item[1]), 1)):
        found = gates.as_verdict(given)
        word = f"**{found}**" if found == gates.FAIL else str(found)
        rows.append([name, word, found.value, found.threshold, found.reason])
    return tabulate(rows, GATE_COLUMNS, tablefmt=GITHUB, disable_numparse=True)


def _predictors(evaluations: Mapping[str, Evaluation]) -> str:
    rows = [[n, *(e.figures.get(key) for key in FIGURES.values())] for n, e in evaluations.items()]
    return Table(["predictor", *FIGURES], rows).to_text(GITHUB)


def _fitting(parts: list[str]) -> str:
    """The parts as one text; where they are too long together, tables are without padding."""
    text = "\n\n".join(parts)
    while "  " in text and len(text) > LONGEST:
        text = text.replace("  ", " ")
    while "---" in text and len(text) > LONGEST:
        text = text.replace("---", "--")
    return text[:LONGEST]
