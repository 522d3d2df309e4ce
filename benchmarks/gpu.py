"""The model on a GPU, with CUDA kernels, beside mamba_ssm's own block and the device's ceilings.

Needs a CUDA device and nvcc; builds causal-conv1d and mamba-ssm where they are missing. It has
never run: docs/gpu.md keeps that sentence until it has.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.frame import Cell, Goal, Table
from benchmarks.models import SINGLE
from benchmarks.run import Run
from ocp_mamba.kernels import cuda
from ocp_mamba.kernels.backend import use_backend
from ocp_mamba.model.build import build_model
from ocp_mamba.model.compiled_step import fast_step
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.mamba2 import Mamba2Mixer
from ocp_mamba.model.quantize import weight_bytes

SHAPES = {"short chains": (64, 14), "long chains": (8, 2048)}
TOLERANCE = {"float32": 1e-4, "bf16": 1e-2}
TRAINING, STEPPING = "Forward and backward of all mixers, bf16", "One vector, batch 1, float32"
PRODUCT, COPY_BYTES = 8192, 2**31
BACKWARD = 3
"""A backward pass costs two forward ones."""


def timed(calls: dict[str, Callable[[], object]], quick: bool) -> dict[str, timing.Timing]:
    """Time calls that start work on the GPU, each until that work is done."""

    def finished(call: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            call()
            torch.cuda.synchronize()

        return run

    return timing.rounds(
        {name: finished(call) for name, call in calls.items()},
        n_rounds=3 if quick else 100,
        warmup=10,
        limit_s=60,
    )


def build_kernels() -> None:
    """Install the two packages where they are missing; their build takes long."""
    if not cuda.missing():
        return
    print(f"{cuda.missing()}; running `{cuda.INSTALL}`", flush=True)
    words = cuda.INSTALL.split()
    assert words[0] == "pip"
    subprocess.run([sys.executable, "-m", *words], check=True)
    cuda.missing.cache_clear()
    if cuda.missing():
        raise SystemExit(f"installed, and still: {cuda.missing()}")


def ceilings(quick: bool) -> tuple[Table, float, float]:
    """What the device reaches at best: TFLOP/s of a big product, GB/s of a big copy."""
    a = torch.randn(PRODUCT, PRODUCT, device="cuda", dtype=torch.bfloat16)
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = timed({"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, quick)
    tflops = 2 * PRODUCT**3 / times["product"].best / 1e12
    gbs = 2 * COPY_BYTES / times["copy"].best / 1e9
    rows: list[dict[str, Cell]] = [
        {"ceiling": f"bf16 product of {PRODUCT} x {PRODUCT}", "TFLOP/s": tflops, "GB/s": None},
        {"ceiling": "copy of 2 GiB, read and written", "TFLOP/s": None, "GB/s": gbs},
    ]
    return Table(f"Ceilings of {torch.cuda.get_device_name()}", rows), tflops, gbs


def difference(precision: str, L: int) -> float:
    """Largest error of a mixer's outputs and gradients by kernels, over the largest true number."""
    torch.manual_seed(0)
    mixer = Mamba2Mixer(SINGLE).cuda()
    x = torch.randn(4, L, 768, device="cuda", requires_grad=True)
    found = {}
    for backend in ("torch", "cuda"):
        use_backend(backend, "cuda")
        exact = backend == "torch" or precision == "float32"
        with torch.autocast("cuda", torch.bfloat16, enabled=not exact):
            y = mixer(x)
        weights = torch.linspace(-1, 1, y.numel(), device="cuda").view_as(y)
        found[backend] = [
            y.float(),
            *torch.autograd.grad((y * weights).sum(), [x, *mixer.parameters()]),
        ]
    return max(
        float((a - b).abs().max() / b.abs().max().clamp(min=1e-6))
        for a, b in zip(found["cuda"], found["torch"], strict=True)
    )


def equality() -> tuple[Table, list[Goal]]:
    """Kernels against plain torch in float32, outputs and gradients, on the same device."""
    rows: list[dict[str, Cell]] = []
    goals = []
    for precision, tolerance in TOLERANCE.items():
        for L in (1, 14, 300):
            error = difference(precision, L)
            rows.append({"precision": precision, "length": L, "largest relative error": error})
            what = f"{precision}, length {L}: kernels equal plain torch to {tolerance}"
            goals.append(Goal(what, f"{error:.1e}", error <= tolerance))
    return Table("Equality of a mixer, outputs and gradients", rows), goals


def their_blocks(model: OCPMambaLVM) -> nn.ModuleList:
    """mamba_ssm's `Mamba2` for each mixer, with its weights."""
    from mamba_ssm.modules.mamba2 import Mamba2

    c = model.config
    blocks = nn.ModuleList()
    for i, layer in enumerate(model.layers):
        block = Mamba2(
            c.d_model, d_state=c.d_state, d_conv=c.d_conv, expand=c.expand, headdim=c.headdim,
            chunk_size=c.chunk_size, layer_idx=i,
        )  # fmt: skip
        block.load_state_dict(layer.mixer.state_dict(), strict=True)
        blocks.append(block)
    return blocks.cuda()


def training(model: OCPMambaLVM, ceiling: float, quick: bool) -> tuple[Table, list[Goal]]:
    """Forward and backward of all mixers in bf16, ours and mamba_ssm's with the same weights."""
    ours = nn.ModuleList(layer.mixer for layer in model.layers)
    theirs = their_blocks(model)
    rows: list[dict[str, Cell]] = []
    goals = []
    products = sum(p.numel() for p in ours.parameters() if p.ndim == 2)
    for name, (B, L) in SHAPES.items():
        x = torch.randn(B, L, model.config.d_model, device="cuda")

        def passes(blocks: nn.ModuleList, x: Tensor = x) -> None:
            with torch.autocast("cuda", torch.bfloat16):
                y = x
                for block in blocks:
                    y = y + block(F.rms_norm(y, (y.shape[-1],)))
            y.float().sum().backward()

        times = timed(
            {"ocp_mamba": lambda: passes(ours), "mamba_ssm Mamba2": lambda: passes(theirs)}, quick
        )
        for who, t in times.items():
            tflops = BACKWARD * 2 * products * B * L / t.best / 1e12
            rows.append(
                {
                    "shape": f"{name}, {B} x {L}",
                    "blocks": who,
                    "best ms": 1e3 * t.best,
                    "p50 ms": 1e3 * t.median,
                    "TFLOP/s of the products": tflops,
                    "of the ceiling": tflops / ceiling,
                }
            )
        ratio = times["ocp_mamba"].best / times["mamba_ssm Mamba2"].best
        what = f"{name}: training step at least as fast as mamba_ssm's Mamba2"
        goals.append(Goal(what, f"{ratio:.2f} of its time", ratio <= 1.0))
    return Table(TRAINING, rows), goals


def captured(blocks: nn.ModuleList, width: int) -> Callable[[], object]:
    """mamba_ssm's step of one vector through all blocks, as a CUDA graph."""
    x = torch.randn(1, 1, width, device="cuda")
    states = [block.allocate_inference_cache(1, 1) for block in blocks]

    @torch.no_grad()
    def once() -> Tensor:
        y = x
        for block, (conv, ssm) in zip(blocks, states, strict=True):
            y = y + block.step(F.rms_norm(y, (width,)), conv, ssm)[0]
        return y

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        once()
    return graph.replay


def stepping(model: OCPMambaLVM, ceiling: float, quick: bool) -> tuple[Table, list[Goal]]:
    """One vector of one sequence, float32: our whole model, and mamba_ssm's blocks alone."""
    blocks = their_blocks(model)
    vector = torch.randn(1, model.config.d_vector, device="cuda")
    fast = fast_step(model, model.allocate_inference_cache(1))
    plain = model.allocate_inference_cache(1)
    contestants: dict[str, tuple[Callable[[], object], int]] = {
        "ocp_mamba, CUDA graph": (lambda: fast(vector), weight_bytes(model)),
        "ocp_mamba, plain": (lambda: model.step(vector, None, plain), weight_bytes(model)),
        "mamba_ssm Mamba2, CUDA graph": (
            captured(blocks, model.config.d_model),
            weight_bytes(blocks),
        ),
    }
    times = timed({name: call for name, (call, _) in contestants.items()}, quick)
    rows: list[dict[str, Cell]] = []
    for name, t in times.items():
        gbs = contestants[name][1] / t.best / 1e9
        rows.append(
            {
                "step": name,
                "best us": 1e6 * t.best,
                "p50 us": 1e6 * t.median,
                "GB/s of the weights": gbs,
                "of the ceiling": gbs / ceiling,
            }
        )
    ours, theirs = (
        times[n].best for n in ("ocp_mamba, CUDA graph", "mamba_ssm Mamba2, CUDA graph")
    )
    what = "a step at least as fast as mamba_ssm's blocks"
    goal = Goal(what, f"{ours / theirs:.2f} of their time", ours <= theirs)
    return Table(STEPPING, rows), [goal]


def main(run: Run) -> None:
    """Build, check equality, then time; every part is kept as soon as it is measured."""
    if not torch.cuda.is_available():
        raise SystemExit(f"gpu: not run: torch {torch.__version__} sees no CUDA device")
    build_kernels()
    top, tflops, gbs = ceilings(run.quick)
    run.add(top)
    run.add(*equality())
    use_backend("cuda", "cuda")
    torch.manual_seed(0)
    model = build_model(SINGLE).cuda().eval()
    parts: dict[str, Callable[[], tuple[Table, list[Goal]]]] = {
        TRAINING: lambda: training(model, tflops, run.quick),
        STEPPING: lambda: stepping(model, gbs, run.quick),
    }
    for title, measure in parts.items():
        if run.over():
            run.add(Table(title, [], run.not_run))
        else:
            run.add(*measure())
