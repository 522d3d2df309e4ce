"""Long chains: time and memory a vector, from 64 to 16,384 vectors, beside a Transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks import timing
from benchmarks.frame import PAGE, Cell, Goal, Result, Table
from benchmarks.train_step import kernels, random_bank
from ocp_mamba.baselines.neural import transformer_of_size
from ocp_mamba.config import MODEL_SIZES
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.training.trainer import resolve_precision

LENGTHS = (64, 256, 1024, 4096, 16_384)
VECTORS = 16_384
"""Vectors a pass, however they are cut into chains: then only the length differs."""
FLAT = 1.25
FIGURE = "figures/long_chains.png"


def passes(model: NextVectorModel, B: int, L: int, precision: str) -> Callable[[], object]:
    """Return a call that goes forward and backward over B chains of L vectors."""
    x = random_bank(B * L).view(B, L, -1)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.predict_all(x).float().square().sum()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def main(quick: bool) -> Result:
    """Time both at each length, with as many vectors each."""
    lengths, vectors = (LENGTHS[:3], 1024) if quick else (LENGTHS, VECTORS)
    compiled = kernels()
    precision = resolve_precision("auto", torch.device("cpu"))
    torch.manual_seed(0)
    config = replace(MODEL_SIZES["small"], members=1, n_layers=2)
    ours = build_model(config)
    models = {"Mamba-2": ours, "Transformer": transformer_of_size(config, ours.num_parameters())}
    runs = {
        (name, L): passes(model, vectors // L, L, precision)
        for name, model in models.items()
        for L in lengths
    }
    named = {f"{name} {L}": run for (name, L), run in runs.items()}
    peaks = {name: timing.peak_mib(run) for name, run in named.items()}
    times = timing.rounds(named, n_rounds=2 if quick else 3, warmup=0, limit_s=20)
    microseconds = {
        name: [1e6 * times[f"{name} {L}"].best / vectors for L in lengths] for name in models
    }
    rows: list[dict[str, Cell]] = []
    for i, L in enumerate(lengths):
        row: dict[str, Cell] = {"chain of": L}
        for name in models:
            row[f"{name}, us a vector"] = microseconds[name][i]
        for name in models:
            peak = peaks[f"{name} {L}"]
            row[f"{name}, peak KiB a vector"] = None if peak is None else peak * 1024 / vectors
        rows.append(row)
    flatness = microseconds["Mamba-2"][-1] / microseconds["Mamba-2"][0]
    if not quick:
        plot(lengths, microseconds)
    note = (
        f"Forward and backward over {vectors:,} vectors, {precision}, 2 layers of width 768; "
        f"{'compiled kernels' if compiled else '**plain torch: the kernels do not compile here**'}."
    )
    goal = Goal(
        f"Mamba-2: time a vector flat from {lengths[0]} to {lengths[-1]:,} (at most {FLAT} times)",
        f"{flatness:.2f}",
        flatness <= FLAT,
    )
    table = Table("Time and memory a vector", rows, note)
    return Result([table], [goal], [] if quick else [FIGURE])


def plot(lengths: tuple[int, ...], microseconds: dict[str, list[float]]) -> None:
    """Draw time a vector over the length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, values in microseconds.items():
        axes.plot(lengths, values, marker="o", label=name)
    axes.set(xscale="log", xlabel="vectors in a chain", ylabel="µs a vector, forward and backward")
    axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
    axes.set_ylim(bottom=0)
    axes.legend()
    path = PAGE.parent / FIGURE
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
