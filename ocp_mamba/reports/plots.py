"""Plots of evaluations: each function draws one plot and returns it, or writes its files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ocp_mamba import stats
from ocp_mamba.evaluation.names import COSINE, LABELS, RANK, VAL_P1
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.training.history import EpochRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH, DPI = 9.0, 130
MODEL_COLOR = "#1f4e9e"
BASELINE_COLORS = ("#e0873b", "#3f9b6c", "#b8566b", "#8465a8", "#7a7468", "#3a9fb3", "#c4a62d")
STRATA = {"all": "", "seen": "seen/", "unseen": "unseen/", "unseen target": "unseen_target/"}
MIN_AT_POSITION = 20
"""A position with fewer examples is left out of the curve: its interval would be too wide."""


def plot_cosine(
    history: Sequence[EpochRecord], baselines: Mapping[str, Evaluation], path: Path
) -> list[Path]:
    """Draw validation cosine and P@1 per epoch, each baseline as a line with its interval.

    Args:
        history: the epochs.
        baselines: evaluations on the same split by the baseline's name.
        path: a ``.png``; the numbers go into a ``.json`` of the same name.

    Returns:
        The two files.
    """
    values = {
        name: {
            metric: figure.value
            for metric in LABELS.values()
            if (figure := evaluation.figures.get(metric)) and figure.value is not None
        }
        for name, evaluation in baselines.items()
    }
    numbers = {
        "epoch": [r.epoch for r in history],
        "val_next_vec_cosine": [r.val[COSINE] for r in history],
        "val_retrieval_p1": [r.val.get(VAL_P1) for r in history],
        "baselines": values,
    }
    return _write(epochs_figure(history, baselines), numbers, path)


def epochs_figure(history: Sequence[EpochRecord], baselines: Mapping[str, Evaluation]) -> Figure:
    """Draw cosine and P@1 per epoch, one panel each; the legend is to the right."""
    from matplotlib.ticker import MaxNLocator

    figure, panels = _figure(2, height=6.4, sharex=True)
    sources = (COSINE, VAL_P1)
    for axes, (label, metric), source in zip(panels, LABELS.items(), sources, strict=True):
        points = [(r.epoch, r.val[source]) for r in history if source in r.val]
        lines = []
        for (name, evaluation), color in zip(
            baselines.items(), _colors(len(baselines)), strict=True
        ):
            found = evaluation.figures.get(metric)
            if found is None or found.value is None or found.low is None or found.high is None:
                continue
            axes.axhspan(found.low, found.high, color=color, alpha=0.15, linewidth=0)
            text = f"{name}  {found.value:.3f}"
            lines.append(
                axes.axhline(found.value, color=color, linestyle="--", linewidth=1.2, label=text)
            )
        if points:
            best = max(value for _, value in points)
            lines += axes.plot(
                *zip(*points, strict=True),
                color=MODEL_COLOR,
                marker="o",
                markersize=4,
                linewidth=2,
                label=f"model  {best:.3f} at best",
            )
        kept = max((r.epoch for r in history if r.is_best), default=None)
        if kept is not None:
            axes.axvline(kept, color=MODEL_COLOR, linewidth=1, alpha=0.6, linestyle=":")
            axes.annotate(
                f"epoch {kept} was kept",
                (kept, 0),
                (4, 4),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=MODEL_COLOR,
                fontsize=8,
            )
        axes.set_ylabel(f"{label}, validation")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        height = {id(line): np.max(line.get_ydata()) for line in lines}
        lines.sort(key=lambda line: -height[id(line)])
        if lines:
            axes.legend(handles=lines, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    panels[0].set_title("Each epoch against the baselines", loc="left")
    panels[-1].set_xlabel("epoch")
    return figure


def plot_losses(history: Sequence[EpochRecord], path: Path) -> list[Path]:
    """Draw every training loss term per epoch; returns the ``.png`` and the ``.json``."""
    from matplotlib.ticker import MaxNLocator

    epochs = [r.epoch for r in history]
    terms = [t for t in (history[0].losses if history else {}) if t != "grad_norm"]
    losses = {term: [r.losses[term] for r in history] for term in terms}
    figure, (axes,) = _figure(1, height=4.2)
    for term, values in losses.items():
        axes.plot(epochs, values, marker="o", markersize=4, label=term)
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss, train split")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("Training loss per epoch", loc="left")
    if losses:
        axes.legend(frameon=False)
    return _write(figure, {"epoch": epochs, "losses": losses}, path)


def strata_figure(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Draw cosine and P@1 per stratum, a bar with its interval for each predictor.

    Args:
        evaluations: the model first, then its baselines, all on the same examples.
    """
    figure, panels = _figure(2, height=6.4, sharex=True)
    colors = (MODEL_COLOR, *_colors(len(evaluations) - 1))
    width = 0.84 / len(evaluations)
    first = next(iter(evaluations.values()))
    for axes, (label, metric) in zip(panels, LABELS.items(), strict=True):
        for number, ((name, evaluation), color) in enumerate(
            zip(evaluations.items(), colors, strict=True)
        ):
            for group, prefix in enumerate(STRATA.values()):
                found = evaluation.figures.get(prefix + metric)
                if found is None or found.value is None or found.low is None or found.high is None:
                    continue
                axes.bar(
                    group + (number - (len(evaluations) - 1) / 2) * width,
                    found.value,
                    width * 0.92,
                    yerr=[[found.value - found.low], [found.high - found.value]],
                    color=color,
                    error_kw={"elinewidth": 1, "ecolor": "#222222"},
                    label=name if group == 0 else None,
                )
        axes.set_ylabel(label)
    counts = [first.figures.get(p + COSINE) for p in STRATA.values()]
    names = [f"{s}\nn = {c.n if c else 0:,}" for s, c in zip(STRATA, counts, strict=True)]
    panels[-1].set_xticks(range(len(STRATA)), names)
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    panels[0].set_title("Seen and unseen transitions, 95% intervals by family", loc="left")
    return figure


def plot_variants(rows: Mapping[str, Mapping[str, stats.Figure]], path: Path) -> Path:
    """Draw a panel for each column, a bar with its interval for each row; the base's is a line.

    Args:
        rows: figures by row and column, the base first.
        path: a ``.png``.
    """
    base, *_ = rows
    figure, panels = _figure(len(rows[base]), height=2.1 * len(rows[base]), sharex=True)
    for axes, column in zip(panels, rows[base], strict=True):
        for place, (name, figures) in enumerate(rows.items()):
            found = figures[column]
            if found.value is None:
                continue
            color = MODEL_COLOR if name == base else BASELINE_COLORS[1]
            axes.bar(place, found.value, 0.7, color=color)
            if name == base:
                axes.axhline(found.value, color=color, linewidth=1, linestyle="--")
            if found.low is not None and found.high is not None:
                axes.plot([place, place], [found.low, found.high], color="#222222", linewidth=1.2)
            axes.annotate(f"{found.value:.3f}", (place, 0), (0, 4), textcoords="offset points",
                          ha="center", color="white")  # fmt: skip
        axes.set_ylabel(column)
    panels[-1].set_xticks(range(len(rows)), list(rows))
    panels[0].set_title("The base and its variants, validation, 95% intervals", loc="left")
    figure.savefig(path)
    return path


def rank_figure(evaluations: Mapping[str, Evaluation]) -> Figure | None:
    """Draw how often the truth is among the k nearest concepts, against k, for each predictor.

    Args:
        evaluations: the model first.
    """
    model = next(iter(evaluations.values()))
    if RANK not in model.per_example or model.n_examples == 0:
        return None
    k = np.unique(np.geomspace(1, model.pool_size, 60).astype(int))
    figure, (axes,) = _figure(1, height=3.8)
    colors = (MODEL_COLOR, *_colors(len(evaluations) - 1))
    for (name, evaluation), color in zip(evaluations.items(), colors, strict=True):
        if RANK not in evaluation.per_example:
            continue
        ranks = np.sort(evaluation.per_example[RANK])
        shares = np.searchsorted(ranks, k, side="right") / len(ranks)
        is_model = color == MODEL_COLOR
        axes.plot(k, shares, color=color, label=name, linewidth=2.2 if is_model else 1.1,
                  zorder=3 if is_model else 2)  # fmt: skip
    axes.plot(k, k / model.pool_size, color="#999999", linestyle=":", label="by chance")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_ylabel("share of sequences")
    axes.set_xlabel(f"k, of {model.pool_size:,} concepts")
    axes.set_title("The true next concept is among the k nearest", loc="left")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def position_figure(evaluations: Mapping[str, Evaluation], positions: np.ndarray) -> Figure:
    """Draw cosine and P@1 against the number of concepts in the context.

    Args:
        evaluations: the model first, then its baselines, all on the same examples.
        positions: int (n,), the context's length of each example.
    """
    from matplotlib.ticker import MaxNLocator

    lengths = [k for k in np.unique(positions) if (positions == k).sum() >= MIN_AT_POSITION]
    figure, panels = _figure(2, height=6.0, sharex=True)
    colors = (MODEL_COLOR, *_colors(len(evaluations) - 1))
    for axes, (label, metric) in zip(panels, LABELS.items(), strict=True):
        for (name, evaluation), color in zip(evaluations.items(), colors, strict=True):
            values, chains = evaluation.per_example[metric], evaluation.families
            curve = [
                stats.bootstrap_mean(values[positions == k], chains[positions == k])
                for k in lengths
            ]
            is_model = color == MODEL_COLOR
            axes.plot(
                lengths,
                _column(curve, "value"),
                color=color,
                marker="o" if is_model else None,
                markersize=4,
                linewidth=2.2 if is_model else 1.1,
                label=name,
                zorder=3 if is_model else 2,
            )
            bounds = _column(curve, "low"), _column(curve, "high")
            axes.fill_between(lengths, *bounds, color=color, alpha=0.15, linewidth=0)
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    panels[0].set_title("By length of the context", loc="left")
    panels[-1].set_xlabel(f"concepts in the context (at least {MIN_AT_POSITION} examples each)")
    return figure


def intervals_figure(rows: Mapping[str, stats.Figure], label: str) -> Figure:
    """Draw one row for each name: its value as a dot, its interval as a line.

    Args:
        rows: figures by name, the first one on top; rows without a value are left out.
        label: what the values are.
    """
    shown = {n: f for n, f in rows.items() if f.value is not None}
    values, lows, highs = (_column(list(shown.values()), c) for c in ("value", "low", "high"))
    figure, (axes,) = _figure(1, height=1.1 + 0.34 * len(shown))
    for number, name in enumerate(shown):
        color = MODEL_COLOR if number == 0 else BASELINE_COLORS[4]
        axes.plot([lows[number], highs[number]], [number, number], color=color, linewidth=2.4)
        axes.plot([values[number]], [number], "o", color=color, label=name)
    axes.set_yticks(range(len(shown)), list(shown))
    axes.invert_yaxis()
    axes.set_xlabel(f"{label}, 95% interval by family")
    return figure


def as_png(figure: Figure) -> str:
    """Return a figure as a ``data:`` address of a PNG, for an ``img`` of a self-contained page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def save_pyplot(axes: Any, path: Path, width: float, height: float) -> Path:
    """Write and close the pyplot figure of some axes, which another library drew.

    Args:
        axes: one axes, or an array of them.
        path: the ``.png`` to write.
        width: of the figure, in inches.
        height: of the figure, in inches.
    """
    from matplotlib import pyplot

    figure = np.ravel(axes)[0].figure
    figure.set_size_inches(width, height)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _column(figures: Sequence[stats.Figure], end: str) -> list[float]:
    return [getattr(figure, end) for figure in figures]


def _colors(count: int) -> list[str]:
    return [BASELINE_COLORS[i % len(BASELINE_COLORS)] for i in range(count)]


def _figure(rows: int, *, height: float, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, 1, sharex=sharex, squeeze=False)[:, 0])
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _write(figure: Figure, numbers: dict[str, Any], path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    data = path.with_suffix(".json")
    data.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return [path, data]
