"""Run benchmarks, each in a process of its own, and write docs/performance.md from the results.

Usage: python -m benchmarks [--quick] [NAME...]

Without names all run. Example: python -m benchmarks --quick train_step
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import time

from benchmarks import frame
from ocp_mamba.system.cpu_info import widen_openblas

BENCHMARKS: dict[str, int] = {
    "train_step": 180,
    "epoch": 50,
    "long": 180,
    "step": 100,
    "retrieval": 90,
}
"""Seconds after which a benchmark is stopped, by its module's name, in the order of the page.

Their sum stays below ten minutes.
"""
LONG: dict[str, int] = {"weights": 600, "gpu": 3600, "retrieval_million": 3600}
"""Those that run only when they are named; the page keeps what they last measured."""
LIMITS = BENCHMARKS | LONG


def main() -> None:
    """Run what the command line names; ends with 1 when one does not run to its end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(LIMITS))
    parser.add_argument("--quick", action="store_true", help="small shapes: does it run at all?")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(LIMITS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    if args.here:
        return _run_here(args.names[0], args.quick)
    failed = [n for n in args.names or BENCHMARKS if not _run_apart(n, args.quick)]
    frame.render()
    print(f"\nwritten: {frame.PAGE.relative_to(frame.ROOT)}")
    if failed:
        sys.exit(f"did not run to their end, the page keeps their last results: {failed}")
    return None


def _run_apart(name: str, quick: bool) -> bool:
    """Run one benchmark in a new process, so that none finds another's memory or caches."""
    command = [sys.executable, "-m", "benchmarks", "--here", name, *(["--quick"] if quick else [])]
    print(f"\n== {name}", flush=True)
    try:
        return subprocess.run(command, cwd=frame.ROOT, timeout=LIMITS[name]).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: stopped after {LIMITS[name]} s")
        return False


def _run_here(name: str, quick: bool) -> None:
    widen_openblas()  # as every command does
    load, started = os.getloadavg()[0], time.perf_counter()
    result = importlib.import_module(f"benchmarks.{name}").main(quick)
    seconds = time.perf_counter() - started
    path = frame.write(name, result, quick=quick, seconds=seconds, load=load)
    print(frame.markdown(frame.read(path)))


if __name__ == "__main__":
    main()
