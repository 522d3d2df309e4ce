"""Long chains: time and memory a vector, from 64 to 16,384 vectors, beside a Transformer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks import frame
from benchmarks.frame import Cell
from benchmarks.models import SINGLE
from benchmarks.run import Run
from benchmarks.train_step import kernels, random_bank
from ocp_mamba.baselines.neural import transformer_of_size
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.training.trainer import resolve_precision

LENGTHS = (64, 256, 1024, 4096, 16_384)
VECTORS = 16_384
"""Vectors a pass, however they are cut into chains: then only the length differs."""
FLAT = 1.25
OURS, PEER = "Mamba-2", "Transformer"


def passes(model: NextVectorModel, B: int, L: int, precision: str) -> Callable[[], object]:
    """Return a call that goes forward and backward over B chains of L vectors."""
    x = random_bank(B * L).view(B, L, -1)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = model.predict_all(x).float().square().sum()
        loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def main(run: Run) -> None:
    """Time both at each length, with as many vectors each."""
    lengths, vectors = (LENGTHS[:3], 1024) if run.quick else (LENGTHS, VECTORS)
    compiled = kernels()
    precision = resolve_precision("auto", torch.device("cpu"))
    torch.manual_seed(0)
    config = replace(SINGLE, n_layers=2)
    ours = build_model(config)
    models = {OURS: ours, PEER: transformer_of_size(config, ours.num_parameters())}
    note = (
        f"Forward and backward over {vectors:,} vectors, {precision}, 2 layers of width 768; "
        f"{'compiled kernels' if compiled else '**plain torch: the kernels do not compile here**'}."
    )
    table = run.table("Time and memory a vector", [{"chain of": L} for L in lengths], note)
    goal = run.goal(
        f"Mamba-2: time a vector flat from {lengths[0]} to {lengths[-1]:,} (at most {FLAT} times)"
    )
    calls = {
        f"{name} {L}": passes(model, vectors // L, L, precision)
        for L in lengths
        for name, model in models.items()
    }
    peaks = run.peaks(calls)
    times = run.rounds(calls, n_rounds=2 if run.quick else 3, warmup=0, limit_s=20)
    took = {
        name: {
            L: 1e6 * times[key].best / vectors for L in lengths if (key := f"{name} {L}") in times
        }
        for name in models
    }
    for row, L in zip(table.rows, lengths, strict=True):
        if L not in took[OURS]:
            continue
        cells: dict[str, Cell] = {f"{name}, us a vector": took[name].get(L) for name in models}
        for name in models:
            peak = peaks[f"{name} {L}"]
            cells[f"{name}, peak KiB a vector"] = None if peak is None else peak * 1024 / vectors
        run.fill(row, cells)
    if lengths[0] in took[OURS] and lengths[-1] in took[OURS]:
        flatness = took[OURS][lengths[-1]] / took[OURS][lengths[0]]
        run.reach(goal, f"{flatness:.2f}", flatness <= FLAT)
    if not run.quick:
        run.result.figures.append(plot(took))


def plot(took: dict[str, dict[int, float]]) -> str:
    """Draw the time of a vector by the length; returns the picture's path below docs/."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    for name, by_length in took.items():
        axes.plot(list(by_length), list(by_length.values()), marker="o", label=name)
    axes.set(xscale="log", xlabel="vectors in a chain", ylabel="µs a vector, forward and backward")
    axes.set_xticks(LENGTHS, [f"{n:,}" for n in LENGTHS])
    axes.set_ylim(bottom=0)
    axes.legend()
    name = f"figures/long_chains-{frame.slug(frame.machine())}.png"
    path = frame.PAGE.parent / name
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return name
