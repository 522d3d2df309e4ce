"""The files of a job: plots, pages and tables, written to a folder and logged as artifacts."""

from __future__ import annotations

import json
from pathlib import Path

from ocp_mamba.data.analysis.leakage import LeakReport
from ocp_mamba.reports.evaluation_page import Report, write_evaluation
from ocp_mamba.reports.plots import plot_cosine, plot_losses
from ocp_mamba.tracking.run import TrackedRun


def log_evaluation(run: TrackedRun, report: Report, folder: Path) -> Path:
    """Write an evaluation's files and log them under ``reports``; returns the page."""
    files = write_evaluation(report, folder)
    for path in files:
        run.log_artifact(path, "reports")
    return files[0]


def log_training(
    run: TrackedRun, report: Report, leaks: LeakReport, summary: str, folder: Path
) -> Path:
    """Write a training's plots, its evaluation and its tables, and log them; returns the page.

    Args:
        run: the tracked run.
        report: the evaluation of the best epoch, with the epochs.
        leaks: what was found about the dataset.
        summary: tables as plain text.
        folder: where to write; made where it does not exist.
    """
    for path in (
        *plot_cosine(report.history, report.baselines, folder / "cosine.png"),
        *plot_losses(report.history, folder / "loss.png"),
    ):
        run.log_artifact(path, "plots")
    page = log_evaluation(run, report, folder)
    texts = {
        "leak_report.md": leaks.to_markdown(),
        "leak_report.json": json.dumps(leaks.figures(), indent=1),
        "summary.txt": summary,
    }
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
        run.log_artifact(folder / name, "reports")
    return page
