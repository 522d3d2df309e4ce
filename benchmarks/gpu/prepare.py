"""Collect what a bare machine with a GPU lacks into an ignored folder, for `runner`.

The machine has torch with CUDA, Triton, numpy, pytest and what comes with them, and no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.frame import ROOT

FOLDER = ROOT / ".gpu_check"
WHEELS, BUILT, NOTE = "wheels", "built", "prepared.json"
MAMBA_SSM, CAUSAL_CONV1D = "mamba-ssm==2.3.2.post1", "causal-conv1d==1.7.0"
LIMIT_BYTES = 40 * 2**20
WITHOUT_NVCC = {
    f"{package}_{switch}": "TRUE"
    for package in ("MAMBA", "CAUSAL_CONV1D")
    for switch in ("FORCE_BUILD", "SKIP_CUDA_BUILD")
}
"""Let the two packages' set-up run where there is no nvcc."""
PYTHON = "3.12"
IMPORTED = (
    "from ocp_mamba.kernels import cuda; import ocp_mamba.training.trainer; "
    "[cuda.mamba_ssm_module(m) for m in (cuda.SCAN_MODULE, cuda.STEP_MODULE, 'modules.mamba2')]; "
    "import ocp_mamba.kernels.triton_conv"
)


def prepare(build_with: str | None, architecture: str, try_with: str | None) -> None:
    """Fill the folder, check its size, try it where that is asked for, and say what to do next.

    Args:
        build_with: a Python with the machine's torch and a CUDA build of it, to build
            causal_conv1d here; None leaves that to the machine.
        architecture: compute capability to build for.
        try_with: a Python of the machine's version, to install the folder into a new environment.

    Raises:
        SystemExit: a package cannot be had, or the folder is too large.
    """
    shutil.rmtree(FOLDER, ignore_errors=True)
    (FOLDER / WHEELS).mkdir(parents=True)
    pip("wheel", MAMBA_SSM, "-w", str(FOLDER / WHEELS))
    pip("download", CAUSAL_CONV1D, "-d", str(FOLDER))
    built = "not-run: no Python was named (--build-with)"
    if build_with:
        built = build(build_with, architecture)
    note = {
        "commit": commit(),
        "prepared": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "packages": [MAMBA_SSM, CAUSAL_CONV1D],
        "causal_conv1d built here": built,
    }
    (FOLDER / NOTE).write_text(json.dumps(note, indent=1) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    if size > LIMIT_BYTES:
        raise SystemExit(f"{FOLDER} has {size / 2**20:.1f} MiB, more than {LIMIT_BYTES >> 20}")
    print(f"{FOLDER.name}: {size / 2**20:.2f} MiB; causal_conv1d built here: {built}")
    print(f"a new environment of Python {PYTHON}: {tried(try_with)}")
    print(
        f"\nCopy this folder, {FOLDER.name} included, to the machine with the GPU, and run there:\n"
        "  python3 scripts/gpu_check.py run --out gpu_results\n"
        "then, here, with what it wrote:\n"
        "  python scripts/gpu_check.py paste gpu_results"
    )


def pip(verb: str, package: str, *words: str) -> None:
    """Have a package from its source archive, without its dependencies and without nvcc."""
    command = [sys.executable, "-m", "pip", verb, "-q", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", package.split("==")[0], package, *words]
    done = subprocess.run(command, env=os.environ | WITHOUT_NVCC, check=False)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with {done.returncode}")


def build(python: str, architecture: str) -> str:
    """Build causal_conv1d for the machine's GPU by the named Python; returns for what it is."""
    archive = next(FOLDER.glob("causal_conv1d-*.tar.gz"))
    command = [python, "-m", "benchmarks.gpu.build_conv", str(archive), str(FOLDER / BUILT)]
    done = subprocess.run([*command, architecture], cwd=ROOT, check=False)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command)}` ended with {done.returncode}")
    asked = subprocess.run(
        [python, "-c", "import sys, torch; print(sys.version.split()[0], torch.__version__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return f"for {architecture}, Python and torch {asked.stdout.strip()}"


def commit() -> str:
    """Return the commit that the folder belongs to, and whether files differ from it."""
    words = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def tried(python: str | None) -> str:
    """Install the folder into a new environment and import it; returns how that went.

    The new environment has nothing but the folder; torch and Triton are those of the named Python.
    """
    if python is None:
        return "not-run: no Python was named (--try-with)"
    asked = subprocess.run(
        [python, "-c", "import sys, sysconfig; print(sysconfig.get_path('purelib')); "
         "print('%d.%d' % sys.version_info[:2])"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if asked.returncode:
        return f"failed: {python} does not start"
    packages, version = asked.stdout.split()
    if version != PYTHON:
        return f"not-run: {python} is Python {version}"
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([python, "-m", "venv", name], check=True)
        own = str(Path(name) / "bin" / "python")
        words = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile"]
        wheels = [str(path) for path in (FOLDER / WHEELS).glob("*.whl")]
        subprocess.run([own, *words, *wheels], check=True)
        path = os.pathsep.join([str(ROOT), packages])
        done = subprocess.run(
            [own, "-c", IMPORTED], env=os.environ | {"PYTHONPATH": path}, capture_output=True,
            text=True, check=False, cwd=name,
        )  # fmt: skip
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        return f"not-run: {last}" if "No module named 'torch'" in last else f"failed: {last}"
    return "installed and imported"
