"""Plots and tables from results; knows no tracker and no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from ocp_mamba.evaluate import Evaluation
from ocp_mamba.train import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES, DPI = (8.0, 4.5), 120


def plot_cosine(
    history: Sequence[EpochRecord], baselines: Mapping[str, float], path: Path
) -> list[Path]:
    """Draw validation cosine per epoch, with each baseline's cosine as a labelled line.

    Args:
        history: the epochs.
        baselines: cosine on the same split by the baseline's name.
        path: a ``.png``; the numbers go beside it as ``.json``.

    Returns:
        The two files.
    """
    epochs = [r.epoch for r in history]
    cosines = [r.val["next_vec_cosine"] for r in history]
    figure, axes = _axes("epoch", "cosine, validation split")
    axes.plot(epochs, cosines, marker="o", label="model")
    for number, (name, value) in enumerate(baselines.items(), 1):
        axes.axhline(value, color=f"C{number}", linestyle="--", linewidth=1, label=name)
        axes.annotate(
            f"{name} {value:.3f}",
            (1, value),
            xycoords=("axes fraction", "data"),
            xytext=(-4, 2),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axes.set_title("Next-vector cosine per epoch against its baselines")
    axes.legend(loc="lower right", fontsize=8)
    numbers = {"epoch": epochs, "val_next_vec_cosine": cosines, "baselines": dict(baselines)}
    return _write(figure, numbers, path)


def plot_losses(history: Sequence[EpochRecord], path: Path) -> list[Path]:
    """Draw every training loss term per epoch; returns the ``.png`` and a ``.json`` beside it."""
    epochs = [r.epoch for r in history]
    terms = [t for t in (history[0].losses if history else {}) if t != "grad_norm"]
    losses = {term: [r.losses[term] for r in history] for term in terms}
    figure, axes = _axes("epoch", "mean loss, train split")
    for term, values in losses.items():
        axes.plot(epochs, values, marker="o", label=term)
    axes.set_title("Training loss per epoch")
    axes.legend(fontsize=8)
    return _write(figure, {"epoch": epochs, "losses": losses}, path)


def epoch_table(history: Sequence[EpochRecord]) -> str:
    """Return the epochs as a table: cosine, retrieval, trend, loss, seconds; * marks the best."""
    best = max((r.epoch for r in history if r.is_best), default=None)
    rows = [
        [
            f"{r.epoch}{'*' if r.epoch == best else ''}",
            r.val["next_vec_cosine"],
            r.val.get("retrieval_p1"),
            r.improvement_trend,
            r.losses["total"],
            r.seconds,
        ]
        for r in history
    ]
    headers = ["epoch", "val cosine", "val P@1", "trend", "train loss", "seconds"]
    floats = ("", ".4f", ".4f", "+.4f", ".4f", ".1f")
    return tabulate(rows, headers=headers, floatfmt=floats, missingval="-")


def baseline_table(judged: Mapping[str, Evaluation]) -> str:
    """Return one row a predictor: cosine and P@1, overall and on unseen transitions.

    The last line says what the figures were taken over: a P@1 means nothing without its pool.
    """
    columns = {
        "cosine": "next_vec_cosine",
        "P@1": "faiss_retrieval_p1",
        "cosine, unseen": "unseen/next_vec_cosine",
        "P@1, unseen": "unseen/faiss_retrieval_p1",
    }
    rows = [
        [
            name,
            *(str(e.figures[key]) if key in e.figures else "not run" for key in columns.values()),
        ]
        for name, e in judged.items()
    ]
    first = next(iter(judged.values()))
    unseen = first.figures.get("unseen/next_vec_cosine")
    note = (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_chains:,} chains, "
        f"{unseen.n if unseen else 0:,} unseen transitions; pool {first.pool_size:,} concepts, "
        f"chance P@1 {first.chance_p1:.5f}; [95% interval, by chain]"
    )
    table = tabulate(rows, headers=["predictor", *columns], disable_numparse=True)
    return f"{table}\n{note}"


def result_table(
    numbers: Mapping[str, float], gates: Mapping[str, str], shown: Sequence[str]
) -> str:
    """Return headline figures with their intervals, then each gate's verdict, as two tables.

    Args:
        numbers: figures by name, with ``interval/<name>_low`` and ``_high`` where there are any.
        gates: verdicts by name.
        shown: the figures to show, in order; one that is absent is shown as ``not-run``.
    """
    rows = []
    for name in shown:
        value = numbers.get(name)
        low, high = (numbers.get(f"interval/{name}_{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        rows.append([name, "not-run" if value is None else f"{value:.4f}", interval])
    figures = tabulate(rows, headers=["figure", "value", "95% interval"], disable_numparse=True)
    return figures + "\n\n" + tabulate(list(gates.items()), headers=["gate", "verdict"])


def _axes(x: str, y: str) -> tuple[Any, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    return figure, axes


def _write(figure: Any, numbers: dict[str, Any], path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    data = path.with_suffix(".json")
    data.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return [path, data]
