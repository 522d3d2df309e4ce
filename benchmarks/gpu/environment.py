"""What the machine is, which parts of the backend it has, and what it reaches at best."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import subprocess

import torch

from benchmarks.frame import Cell
from benchmarks.gpu.place import Place
from benchmarks.run import Run
from ocp_mamba.kernels import backend, cuda

CEILINGS = "Ceilings"
PACKAGES = ("torch", "triton", "mamba_ssm", "causal_conv1d", "transformers", "numpy")


def main(run: Run, place: Place) -> None:
    """Say what is there, then time a large product and a large copy."""
    facts = {
        "card": place.card(),
        "driver": driver() if place.device.type == "cuda" else "none",
        "CUDA of torch": str(torch.version.cuda),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "backend": backend.described("auto", place.device),
        "parts without kernels": cuda.missing() or "none",
    }
    table = run.table(place.title("Environment"), [{"what": name} for name in facts])
    for row, value in zip(table.rows, facts.values(), strict=True):
        run.fill(row, {"found": value})
    ceilings(run, place)


def version(package: str) -> str:
    """Return an installed package's version, in words where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        found = importlib.util.find_spec(package)
        return "not installed" if found is None else "installed, version not told"


def driver() -> str:
    """Return the version of NVIDIA's driver, as nvidia-smi tells it."""
    words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvidia-smi does not say ({error})"
    return done.stdout.split("\n")[0].strip()


def ceilings(run: Run, place: Place) -> None:
    """Time a product and a copy that fill the device."""
    n, size = (256, 2**20) if place.stand_in else (8192, 2**31)
    names = [f"bf16 product of {n} x {n}", f"copy of {size / 2**20:,.0f} MiB, read and written"]
    table = run.table(place.title(CEILINGS), [{"ceiling": name} for name in names])
    a = torch.randn(n, n, device=place.device, dtype=torch.bfloat16)
    source = torch.empty(size, dtype=torch.uint8, device=place.device)
    target = torch.empty_like(source)
    times = place.timed(
        run, {"product": lambda: a @ a, "copy": lambda: target.copy_(source)}, limit_s=5
    )
    cells: list[dict[str, Cell]] = [
        {"TFLOP/s": 2 * n**3 / times["product"].best / 1e12, "GB/s": None},
        {"TFLOP/s": None, "GB/s": 2 * size / times["copy"].best / 1e9},
    ]
    for row, cell in zip(table.rows, cells, strict=True):
        run.fill(row, cell)
