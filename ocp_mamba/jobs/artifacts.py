"""What a job leaves: plots, pages and tables, logged as artifacts, and where to look."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

from ocp_mamba.data.analysis.leakage import LeakReport
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.reports.evaluation_page import Report, write_evaluation
from ocp_mamba.reports.plots import plot_cosine, plot_losses
from ocp_mamba.tracking.registry import CANDIDATE, ModelVersion
from ocp_mamba.tracking.registry.candidate import alias_said
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.store import ui_link


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
    log_leaks(run, leaks, folder)
    log_texts(run, {"summary.txt": summary}, folder)
    return page


def log_leaks(run: TrackedRun, leaks: LeakReport, folder: Path) -> None:
    """Write what was found about a dataset, as text and as numbers, and log both."""
    texts = {
        "leak_report.md": leaks.to_markdown(),
        "leak_report.json": json.dumps(leaks.figures(), indent=1),
    }
    log_texts(run, texts, folder)


def log_texts(run: TrackedRun, texts: Mapping[str, str], folder: Path) -> None:
    """Write texts by the names of their files, and log them as reports; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
        run.log_artifact(folder / name, "reports")


def where_to_look(
    run: TrackedRun,
    output: Path,
    version: ModelVersion | None,
    report: Path,
    dataset: Dataset,
) -> str:
    """Return the paths and commands of the model file, the report, the served model and the UI.

    Args:
        run: the tracked run.
        output: the shared ``.pt``.
        version: that was registered; None where the store did not take it in time.
        report: the page.
        dataset: whose words the example asks.
    """
    link, command = ui_link(run.store, run.experiment_id)
    lines = [f"\nmodel file   {output}", f"report       {report}"]
    if version is None:
        lines.append("registered   not-run: the store did not take the model in time, see below")
    else:
        name, number = version.name, version.version
        moved = alias_said(version)[0]
        uri = f"models:/{name}@{CANDIDATE}" if moved else f"models:/{name}/{number}"
        lines += [
            f"registered   {name} version {number}, {_alias_line(version)}",
            f"serve it     MLFLOW_TRACKING_URI={run.store} \\\n"
            f"               ocp-mamba serve {uri}",
            f"ask it       ocp-mamba ask --model {uri} {_first_words(dataset)}",
        ]
    if command:
        lines.append(f"open the UI  {command}")
    return "\n".join([*lines, f"then look at {link}"])


def _alias_line(version: ModelVersion) -> str:
    """Whether a version has the alias; if not, why, and what to do where it should have it."""
    moved, objection = alias_said(version)
    if moved:
        return f"alias {CANDIDATE}" + (f", moved although {objection}" if objection else "")
    return (
        f"without the alias {CANDIDATE}:\n             {objection}.\n"
        "             --alias-anyway moves it all the same; --model-name registers a model of its "
        "own"
    )


def _first_words(dataset: Dataset) -> str:
    """The first two concepts of a val chain, quoted for a shell."""
    return shlex.join(str(dataset.texts[i]) for i in dataset.chain(dataset.chains_in("val")[0])[:2])
