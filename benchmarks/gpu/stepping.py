"""One vector of one sequence, float32: our whole model and mamba_ssm's blocks, as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.frame import Cell
from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import first_line, their_path, with_their_mixers
from benchmarks.run import Run
from ocp_mamba.kernels import backend
from ocp_mamba.kernels.graphs import capture_graph
from ocp_mamba.model.build import build_model
from ocp_mamba.model.compiled_step import fast_step
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.quantize import weight_bytes

CAPTURED, PLAIN = "ocp_mamba, CUDA graph", "ocp_mamba, plain"
THEIRS = "mamba_ssm Mamba2, CUDA graph"
REPEAT = 20
"""Steps between two waits for the device: it is not waited for after each vector."""


def main(run: Run, place: Place) -> None:
    """Time the three, after each has been prepared."""
    backend.use_backend("auto", place.device)
    names = (CAPTURED, PLAIN, THEIRS)
    table = run.table(
        place.title("One vector, batch 1, float32"),
        [{"step": name} for name in names],
        f"mamba_ssm's blocks alone, without input norm, last norm and head; {their_path(place)}.",
    )
    goal = place.goal(run, "one vector: at least as fast as mamba_ssm's blocks")
    torch.manual_seed(0)
    model = build_model(place.config).to(place.device).eval()
    vector = torch.randn(1, model.config.d_vector, device=place.device)
    calls: dict[str, tuple[Callable[[], object], int]] = {}
    for name, row in zip(names, table.rows, strict=True):
        if run.over():
            return
        try:
            calls[name] = contestant(name, place, model, vector)
            calls[name][0]()
        except Exception as error:  # one that cannot run must not end the others
            calls.pop(name, None)
            run.skip(row, first_line(error))
    timed = place.timed(
        run, {name: call for name, (call, _) in calls.items()}, limit_s=10, repeat=REPEAT
    )
    for name, row in zip(names, table.rows, strict=True):
        if name in timed:
            t = timed[name]
            cells: dict[str, Cell] = {
                "best us": 1e6 * t.best,
                "median us": 1e6 * t.median,
                "GB/s of the weights": calls[name][1] / t.best / 1e9,
            }
            run.fill(row, cells)
    if CAPTURED in timed and THEIRS in timed:
        ours, theirs = timed[CAPTURED].best, timed[THEIRS].best
        run.reach(goal, f"{ours / theirs:.2f} of their time", ours <= theirs)


def contestant(
    name: str, place: Place, model: OCPMambaLVM, vector: Tensor
) -> tuple[Callable[[], object], int]:
    """Return the call that takes one step, and the bytes of the weights that it reads."""
    if name == THEIRS:
        blocks = nn.ModuleList(layer.mixer for layer in with_their_mixers(model, place, 1).layers)
        return captured_blocks(blocks, model, place), weight_bytes(blocks)
    cache = model.allocate_inference_cache(1)
    if name == PLAIN or place.stand_in:  # on a CPU, compiling the step takes half a minute
        return lambda: model.step(vector, None, cache), weight_bytes(model)
    fast = fast_step(model, cache)
    return lambda: fast(vector), weight_bytes(model)


def captured_blocks(blocks: nn.ModuleList, model: OCPMambaLVM, place: Place) -> Callable[[], Any]:
    """Return mamba_ssm's step of one vector through all blocks, as a CUDA graph."""
    width = model.config.d_model
    if place.stand_in:
        x, states = torch.randn(1, width), model.allocate_inference_cache(1).layers
        return lambda: [m.step(x, s) for m, s in zip(blocks, states, strict=True)]  # type: ignore[operator]
    x = torch.randn(1, 1, width, device=place.device)
    states = [block.allocate_inference_cache(1, 1) for block in blocks]  # type: ignore[operator]

    @torch.no_grad()
    def once() -> Tensor:
        y = x
        for block, (conv, ssm) in zip(blocks, states, strict=True):
            y = y + block.step(F.rms_norm(y, (width,)), conv, ssm)[0]  # type: ignore[operator]
        return y

    return capture_graph(once)[0].replay
