"""Run benchmarks, each in a process of its own, and write docs/performance.md from the results.

Usage: python -m benchmarks [--quick] [NAME...]

Without names all run. Example: python -m benchmarks --quick train_step
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks import calibration, frame

BENCHMARKS: dict[str, int] = {
    "train_step": 180,
    "epoch": 110,
    "long": 140,
    "step": 90,
    "retrieval": 80,
}
"""Seconds on the reference machine after which a benchmark starts nothing more, by its module's
name, in the order of the page. `calibration` multiplies them on a slower machine.

Their sum stays below ten minutes.
"""
LONG: dict[str, int] = {
    "predict": 300,
    "serving": 600,
    "weights": 600,
    "retrieval_million": 3600,
}
"""Those that run only when they are named; the page keeps what they last measured."""
LIMITS = BENCHMARKS | LONG
PACKAGE = "benchmarks"
GRACE_S = 60.0
"""A process is ended from outside at twice its limit and as many seconds more."""


def main() -> None:
    """Run what the command line names; ends with 1 when a benchmark fails by an error."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(LIMITS))
    parser.add_argument(
        "--quick", action="store_true", help="small shapes: does it run at all? keeps no result"
    )
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(LIMITS))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    failed = [n for n in args.names or BENCHMARKS if not run_apart(n, args.quick)]
    if not args.quick:
        frame.render()
        print(f"\nwritten: {frame.PAGE}")
    if failed:
        sys.exit(f"ended with an error, the page keeps their last results: {', '.join(failed)}")


def run_apart(name: str, quick: bool) -> bool:
    """Run one benchmark in a new process, so that none finds another's memory or caches.

    Returns:
        False for an error. A benchmark that is stopped at its limit is none.
    """
    slowness = calibration.slowness()
    print(f"\n== {name}: at most {LIMITS[name] * slowness:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.json"
        if not _ended_well(name, path, quick, slowness):
            print(f"{name}: ended with an error", flush=True)
            return False
        if not path.is_file():
            print(f"{name}: nothing was measured, the page keeps its last result", flush=True)
            return True
        if not quick:
            path = frame.keep(path)
        print(frame.markdown(frame.read(path)), flush=True)
    return True


def _ended_well(name: str, path: Path, quick: bool, slowness: float) -> bool:
    """Run a benchmark to its end, or end it long after its limit; returns False for an error."""
    words = [f"{PACKAGE}.{name}", path, int(quick), LIMITS[name], slowness]
    command = [sys.executable, "-m", "benchmarks.child", *map(str, words)]
    end = 2 * LIMITS[name] * slowness + GRACE_S
    try:
        return subprocess.run(command, cwd=frame.ROOT, timeout=end).returncode == 0
    except subprocess.TimeoutExpired:
        print(f"{name}: ended after {end:.0f} s; what it has measured is kept", flush=True)
        return True


if __name__ == "__main__":
    main()
