"""Run the stages one after the other on a machine with a GPU, each in a process with a limit.

Beside the first stages, which time nothing, caches are filled and causal_conv1d is built.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks import frame
from benchmarks.frame import ROOT
from benchmarks.gpu.prepare import BUILT, FOLDER, NOTE, WHEELS
from benchmarks.gpu.stages import STAGES, TOTAL_S, Stage

GRACE_S = 8.0
"""Seconds after its limit at which a stage is ended from outside."""
LEAST_S = 10.0
"""A stage is not begun with less time left."""
BESIDE_S = 180.0
"""Seconds after which what runs beside the first stages is ended."""


def run(out: Path, stand_in: bool, only: Iterable[str] = (), total_s: float = TOTAL_S) -> bool:
    """Run the stages; returns whether each of them ended well.

    Args:
        out: folder of a JSON file for each stage.
        stand_in: try everything on a CPU, with small sizes.
        only: names of stages; none for all.
        total_s: seconds for all of them.
    """
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    note = read_note()
    chosen = [stage for stage in STAGES if not only or stage.name in set(only)]
    with tempfile.TemporaryDirectory() as name:
        site = Path(name) / "site"
        environment = install(site, Path(name))
        beside = Beside(environment, site, stand_in, time.monotonic())
        try:
            well = []
            for stage in chosen:
                if stage.timed:
                    beside.finish()
                left = total_s - (time.monotonic() - started)
                well.append(one(stage, out, stand_in, left, environment, note))
        finally:
            beside.finish(now=True)
    print(f"\n{sum(well)} of {len(well)} stages ended well, {time.monotonic() - started:.0f} s")
    return all(well)


def read_note() -> dict[str, Any]:
    """Return what `prepare` wrote.

    Raises:
        SystemExit: the folder is missing.
    """
    path = FOLDER / NOTE
    if not path.is_file():
        raise SystemExit(f"{path} is missing: run `python scripts/gpu_check.py prepare` first")
    note: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return note


def install(site: Path, folder: Path) -> dict[str, str]:
    """Put the folder's packages into a folder of their own; returns the stages' environment."""
    wheels = [str(path) for path in sorted((FOLDER / WHEELS).glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps"]
    command += ["--no-compile", "--no-cache-dir", "--target", str(site), *wheels]
    subprocess.run(command, check=True)
    path = [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(folder / "triton"),
    }
    built = FOLDER / BUILT
    if built.is_dir():
        shutil.copytree(built, site, dirs_exist_ok=True)
        words = [sys.executable, "-c", "import torch, causal_conv1d"]
        tried = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
        if tried.returncode:
            print(f"causal_conv1d of {BUILT} does not fit: {tried.stderr.strip()[-200:]}")
            for path_ in site.glob("causal_conv1d*"):
                shutil.rmtree(path_) if path_.is_dir() else path_.unlink()
    return environment


class Beside:
    """What runs beside the first stages: caches are filled, and causal_conv1d is built."""

    def __init__(
        self, environment: dict[str, str], site: Path, stand_in: bool, began: float
    ) -> None:
        """Start all; a build only where there is nvcc and no package yet."""
        self._began = began
        folder = site.parent
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: dict[str, Path] = {}
        for name in ("warm", "warm_long"):
            words = ["benchmarks.gpu", name, str(folder / f"{name}.json"), str(BESIDE_S)]
            self._logs[name] = folder / f"{name}.log"
            self._running[name] = process(
                words + ["--stand-in"] * stand_in, environment, self._logs[name]
            )
        archives = list(FOLDER.glob("causal_conv1d-*.tar.gz"))
        if (site / "causal_conv1d").is_dir():
            print("causal_conv1d: built before")
        elif stand_in or not shutil.which("nvcc") or not archives:
            print(f"causal_conv1d: not-run, {'a dry run' if stand_in else 'there is no nvcc'}")
        else:
            self._logs["causal_conv1d"] = folder / "build.log"
            words = ["benchmarks.gpu.build_conv", str(archives[0]), str(site)]
            self._running["causal_conv1d"] = process(words, environment, folder / "build.log")

    def finish(self, now: bool = False) -> None:
        """Wait for all until their limit, end what still runs, and say how they went."""
        for name, started in list(self._running.items()):
            left = 0.0 if now else max(0.0, BESIDE_S - (time.monotonic() - self._began))
            try:
                code: int | str = started.wait(timeout=left)
            except subprocess.TimeoutExpired:
                end(started)
                code = f"ended after {time.monotonic() - self._began:.0f} s"
            log = self._logs[name].read_text(encoding="utf-8", errors="replace")
            print(f"{name}: {'done' if code == 0 else code}", flush=True)
            if code != 0:
                print(log[-1500:], flush=True)
            del self._running[name]


def process(words: list[str], environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start a module as the leader of its own group of processes."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=ROOT, env=environment, stdout=stream,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


def end(started: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def one(
    stage: Stage,
    out: Path,
    stand_in: bool,
    left: float,
    environment: dict[str, str],
    note: dict[str, Any],
) -> bool:
    """Run one stage within its limit and the time that is left; prints its tables."""
    path, limit = out / f"{stage.name}.json", min(stage.limit_s, left - GRACE_S)
    path.unlink(missing_ok=True)
    if limit < LEAST_S:
        print(f"\n== {stage.name}: not-run, {left:.0f} s are left of the time for all", flush=True)
        return False
    print(f"\n== {stage.name}: {stage.what}; at most {limit:.0f} s", flush=True)
    words = ["benchmarks.gpu", stage.name, str(path), f"{limit:.1f}"] + ["--stand-in"] * stand_in
    began, log = time.monotonic(), Path(environment["TRITON_CACHE_DIR"]).parent / "stage.log"
    started = process(words, environment, log)
    try:
        code = started.wait(timeout=limit + GRACE_S)
        how = "" if code == 0 else f"ended with status {code}"
    except subprocess.TimeoutExpired:
        end(started)
        how = f"ended after {limit + GRACE_S:.0f} s; what it has measured is kept"
    if how:
        print(f"{stage.name}: {how}\n{log.read_text(errors='replace')[-1500:]}", flush=True)
    if path.is_file():
        content = frame.read(path)
        content["ended"], content["prepared"] = how or "well", note
        content["machine"]["commit"] = note["commit"]
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"{frame.markdown(content)}\n({time.monotonic() - began:.0f} s)", flush=True)
    return not how and path.is_file()
