"""Kernels against plain torch on random shapes, and captured steps against plain ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import captured_step, plain_state, smallest_configurations
from benchmarks.run import Run
from benchmarks.train_step import batch_of, random_bank
from ocp_mamba.config import TrainConfig
from ocp_mamba.kernels import backend, cuda, ops, step
from ocp_mamba.model.build import build_model
from ocp_mamba.training.trainer import train_step

TOLERANCE = {"float32": 1e-4, "bf16": 1e-2}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
SHAPES_DRAWN = 6
STEPS = 5
CAPTURED_TOLERANCE = 1e-4
Call = Callable[..., Tensor]


def main(run: Run, place: Place) -> None:
    """Compare each part on random shapes, then the steps of a training."""
    smallest_configurations(place)
    operations(run, place)
    captured(run, place)


def error_of(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest error of some tensors, each over its largest true number."""
    return max(
        float((a.detach().float() - b.detach().float()).abs().max() / largest(b))
        for a, b in zip(found, wanted, strict=True)
    )


def largest(x: Tensor) -> Tensor:
    """Return the largest magnitude, above zero."""
    return x.detach().float().abs().max().clamp(min=1e-6)


def with_gradients(call: Call, given: list[Tensor]) -> list[Tensor]:
    """Return a call's output and the gradients of all that is given."""
    leaves = [t.detach().requires_grad_() for t in given]
    y = call(*leaves)
    weights = torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y)
    return [y, *torch.autograd.grad((y.float() * weights).sum(), leaves)]


def operations(run: Run, place: Place) -> None:
    """Each part by its kernels and in plain torch and float32, on the same device."""
    names = [(part, kind) for kind in TOLERANCE for part in cuda.parts()]
    names.remove((cuda.STEP, "bf16"))
    table = run.table(
        place.title("Equality of each part, outputs and gradients, on random shapes"),
        [{"part": part, "precision": kind} for part, kind in names],
        "The error is the largest one over the largest true number of each tensor. The step has no "
        "gradients and computes in float32 alone.",
    )
    goals = {
        (part, kind): place.goal(
            run, f"{part}, {kind}: kernels equal plain torch to {TOLERANCE[kind]}"
        )
        for part, kind in names
    }
    for row, (part, kind) in zip(table.rows, names, strict=True):
        if run.over():
            return
        by = cuda.parts()[part].by
        if by == cuda.TORCH and not place.stand_in:
            run.skip(row, cuda.parts()[part].why)
            continue
        error, shapes = difference(part, DTYPES[kind], place)
        run.fill(row, {"by": by, "shapes": shapes, "largest relative error": error})
        run.reach(goals[part, kind], f"{error:.1e}", error <= TOLERANCE[kind])


def difference(part: str, dtype: torch.dtype, place: Place) -> tuple[float, int]:
    """Return the largest error over random shapes, and their number."""
    rng = np.random.default_rng(0)
    errors = []
    for number in range(SHAPES_DRAWN):
        B, L = int(rng.integers(1, 5)), int(rng.integers(1, 40 if place.stand_in else 400))
        H, P, N = int(rng.integers(1, 9)), int(rng.choice([16, 32, 64])), int(rng.choice([16, 64]))
        torch.manual_seed(number)
        errors.append(COMPARED[part](place, dtype, B, L, H, P, N))
    return max(errors), len(errors)


def scan_error(place: Place, dtype: torch.dtype, B: int, L: int, H: int, P: int, N: int) -> float:
    """The scan, always by the kernel: `ops` gives a sequence of one chunk to plain torch."""
    x, b, c = (drawn(place, B, L, *s).to(dtype) for s in ((H, P), (N,), (N,)))
    dt, A = F.softplus(drawn(place, B, L, H) - 3), -drawn(place, H).exp()
    given = [x, dt, A, b, c, drawn(place, H)]
    kernel = ops.ssd_scan if place.stand_in else cuda.ssd_scan
    return compared(lambda *t: kernel(*t, 64), lambda *t: ops.ssd_scan(*t, 64), given, place)


def convolution_error(
    place: Place, dtype: torch.dtype, B: int, L: int, H: int, P: int, N: int
) -> float:
    """The convolution of a part of wider rows, as the mixer gives it."""
    channels = H * P + 2 * N + L % 2
    x = drawn(place, B, L, channels + 40).to(dtype)[..., 8 : 8 + channels]
    given = [x, drawn(place, channels, 4), drawn(place, channels)]
    return compared(ops.causal_conv1d, ops.causal_conv1d, given, place)


def step_error(place: Place, dtype: torch.dtype, B: int, L: int, H: int, P: int, N: int) -> float:
    """One position of convolution and scan, and the states after it."""
    found, wanted = [], []
    for name, results in (("auto", found), ("torch", wanted)):
        torch.manual_seed(L)
        backend.use_backend(name, place.device)
        dt, A = F.softplus(drawn(place, B, H)), -drawn(place, H).exp()
        b, c, state = drawn(place, B, N), drawn(place, B, N), drawn(place, B, H, P, N)
        results += [
            step.ssm_step(drawn(place, B, H, P), dt, A, b, c, drawn(place, H), state),
            state,
        ]
        conv = drawn(place, B, H * P, 4)
        row, weight, bias = drawn(place, B, H * P), drawn(place, H * P, 4), drawn(place, H * P)
        results += [step.conv_step(row, conv, weight, bias), conv]
    backend.use_backend("auto", place.device)
    return error_of(found, wanted)


def compared(kernel: Call, plain: Call, given: list[Tensor], place: Place) -> float:
    """The error of the kernels against plain torch in float32, with gradients."""
    backend.use_backend("auto", place.device)
    found = with_gradients(kernel, given)
    backend.use_backend("torch", place.device)
    wanted = with_gradients(plain, [t.float() for t in given])
    backend.use_backend("auto", place.device)
    return error_of(found, wanted)


def drawn(place: Place, *shape: int) -> Tensor:
    """Return normal numbers on the device, the same on every device."""
    return torch.randn(shape).to(place.device)


COMPARED = {cuda.SCAN: scan_error, cuda.STEP: step_error, cuda.CONVOLUTION: convolution_error}


def captured(run: Run, place: Place) -> None:
    """Some steps of a training as CUDA graphs, and the same steps one operation at a time."""
    kinds = ("float32", "bf16")
    table = run.table(
        place.title(f"Equality of {STEPS} captured training steps"),
        [{"precision": kind} for kind in kinds],
        "Captured and plain steps use the same kernels. The error of the loss and of the norm of "
        "the gradient is the largest relative one of the steps; that of the weights is absolute, "
        "after the last.",
    )
    goals = {kind: place.goal(run, f"captured steps equal plain ones, {kind}") for kind in kinds}
    for row, kind in zip(table.rows, kinds, strict=True):
        if run.over():
            return
        loss, weights, ran = captured_difference(place, kind)
        run.fill(row, {"error of the loss": loss, "error of the weights": weights, "capture": ran})
        limit = CAPTURED_TOLERANCE if kind == "float32" else TOLERANCE["bf16"]
        run.reach(goals[kind], f"{loss:.1e}", loss <= limit)


def captured_difference(place: Place, precision: str) -> tuple[float, float, str]:
    """Return the errors of losses and of weights, and what the capture says of itself."""
    B, L = place.shapes["short chains"]
    bank = random_bank(500).to(place.device)
    config = TrainConfig(precision=precision)
    torch.manual_seed(0)
    first = build_model(place.config)
    second = build_model(place.config)
    second.load_state_dict(first.state_dict())
    batches = [batch_of(B, length, bank) for length in (L, max(2, L // 2), L, L - 1, L)][:STEPS]
    plain = plain_state(first.to(place.device), config, precision)
    step = captured_step(second.to(place.device), config, precision, bank, B, L)
    errors = []
    for batch in batches:
        wanted = train_step(plain, batch, bank, 1e-4, config)
        found = step(batch, 1e-4)
        if found is None:
            return float("inf"), float("inf"), str(step)
        errors += [
            abs(found[name] - wanted[name]) / max(abs(wanted[name]), 1e-6) for name in wanted
        ]
    weights = max(
        float((a - b).abs().max())
        for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    return max(errors), weights, str(step)
