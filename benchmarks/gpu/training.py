"""The training step of each shape: captured and plain, beside mamba_ssm and a Transformer.

A step is all of it: forward, loss, backward, clipping, AdamW, and reading the loss.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.frame import Cell, Goal, Table
from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import (
    captured_call,
    copy_of,
    first_line,
    free,
    plain_call,
    their_path,
    with_their_mixers,
)
from benchmarks.run import Run
from benchmarks.train_step import batch_of, random_bank
from ocp_mamba.baselines.neural import transformer_of_size
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch
from ocp_mamba.kernels import backend
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.capture.step import compiles

CAPTURED, COMPILED = "ocp_mamba, one CUDA graph", "ocp_mamba, one CUDA graph, torch.compile"
PLAIN, TORCH = "ocp_mamba, plain", "ocp_mamba, plain, backend torch"
THEIRS, THEIRS_CAPTURED = "mamba_ssm Mamba2", "mamba_ssm Mamba2, one CUDA graph"
TRANSFORMER = "Transformer of equal size"
NAMES = (CAPTURED, COMPILED, PLAIN, THEIRS, THEIRS_CAPTURED, TORCH, TRANSFORMER)
OURS = (CAPTURED, COMPILED)
BACKWARD = 3
"""A backward pass costs two forward ones."""
STEP_MS, AHEAD, LIMIT_S = 1.0, 3.0, 25.0
CONFIG = TrainConfig(precision="bf16")
Calls = dict[str, Callable[[], float]]
SAME_LOSS = 1e-2
"""The first loss of a captured step, in bf16, is that of the plain step to this."""


def main(run: Run, place: Place) -> None:
    """Time all contestants at each shape."""
    backend.use_backend("auto", place.device)
    torch.manual_seed(0)
    model = build_model(place.config).to(place.device)
    bank = random_bank(500).to(place.device)
    tables = {
        name: run.table(
            place.title(f"A training step, {name}: {B} x {L} vectors, bf16"),
            [{"step": n} for n in NAMES],
            f"mamba_ssm's blocks have the same weights, loss and optimizer; {their_path(place)}."
            + " Without a graph nothing is compiled here." * place.stand_in,
        )
        for name, (B, L) in place.shapes.items()
    }
    goals = declare(run, place)
    loss_goals = {
        name: place.goal(run, f"{name}: captured steps begin with the plain step's loss")
        for name in place.shapes
    }
    for name in sorted(place.shapes, key=lambda name: not goals[name]):  # goals first
        if run.over():
            return
        batch = batch_of(*place.shapes[name], bank)
        measure(run, place, model, batch, bank, tables[name], goals[name], loss_goals[name])


def declare(run: Run, place: Place) -> dict[str, list[Goal]]:
    """Declare the goals of each shape."""
    return {
        "short chains": [
            place.goal(run, f"short chains: a training step of at most {STEP_MS:.0f} ms"),
            place.goal(
                run, f"short chains: at least {AHEAD:.0f} times as fast as mamba_ssm's block"
            ),
        ],
        "middle chains": [],
        "long chains": [place.goal(run, "long chains: at least as fast as mamba_ssm's block")],
    }


def measure(
    run: Run,
    place: Place,
    model: OCPMambaLVM,
    batch: Batch,
    bank: Tensor,
    table: Table,
    goals: list[Goal],
    loss_goal: Goal,
) -> None:
    """Prepare the contestants of one shape one by one, then time them in turns."""
    calls: Calls = {}
    losses: dict[str, float] = {}
    rows = dict(zip(NAMES, table.rows, strict=True))
    for name in NAMES:
        if run.over():
            return
        if name == COMPILED and not compiles(model, batch.mask.shape[1]):
            run.skip(rows[name], "torch's compiler would unroll its many chunks")
            continue
        try:
            call = contestant(name, place, model, batch, bank)
            losses[name] = call()
            calls[name] = call
        except Exception as error:  # one that cannot run must not end the others
            run.skip(rows[name], first_line(error))
    times = place.timed(run, calls, limit_s=LIMIT_S)
    products = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    vectors = batch.mask.numel()
    for name, t in times.items():
        cells: dict[str, Cell] = {
            "best ms": 1e3 * t.best,
            "median ms": 1e3 * t.median,
            "vectors/s": round(vectors / t.best),
            "TFLOP/s of the products": BACKWARD * 2 * products * vectors / t.best / 1e12,
            "first loss": losses[name],
        }
        run.fill(rows[name], cells)
    best = {name: t.best for name, t in times.items()}
    reach(run, best, goals)
    same = [abs(losses[n] / losses[PLAIN] - 1) for n in OURS if n in losses and PLAIN in losses]
    if same:
        run.reach(loss_goal, f"{max(same):.1e}", max(same) <= SAME_LOSS)
    calls.clear()
    gc.collect()
    free()


def contestant(
    name: str, place: Place, model: OCPMambaLVM, batch: Batch, bank: Tensor
) -> Callable[[], float]:
    """Return the call that takes a contestant's step."""
    if name == TRANSFORMER:
        peer = transformer_of_size(model.config, model.num_parameters()).to(place.device)
        return plain_call(peer, CONFIG, "bf16", batch, bank)
    if name == TORCH:
        return in_torch(place, plain_call(copy_of(model), CONFIG, "bf16", batch, bank))
    theirs = name in (THEIRS, THEIRS_CAPTURED)
    one = with_their_mixers(model, place, batch.mask.shape[1]) if theirs else copy_of(model)
    config = replace(CONFIG, compile="on") if name == COMPILED else CONFIG
    make = plain_call if name in (PLAIN, THEIRS) else captured_call
    return make(one, config, "bf16", batch, bank)


def in_torch(place: Place, call: Callable[[], float]) -> Callable[[], float]:
    """Return a call that runs without kernels."""

    def run() -> float:
        backend.use_backend("torch", place.device)
        try:
            return call()
        finally:
            backend.use_backend("auto", place.device)

    return run


def reach(run: Run, best: dict[str, float], goals: list[Goal]) -> None:
    """Compare the faster of our two captured steps with the goals of the shape."""
    ours = min((best[name] for name in OURS if name in best), default=None)
    if ours is None or not goals:
        return
    if len(goals) == 2:
        run.reach(goals[0], f"{1e3 * ours:.2f} ms", 1e3 * ours <= STEP_MS)
    if THEIRS in best:
        ahead, wanted = best[THEIRS] / ours, AHEAD if len(goals) == 2 else 1.0
        run.reach(goals[-1], f"{ahead:.2f} times", ahead >= wanted)
