"""Run one benchmark in this process: what `python -m benchmarks` starts for each.

Usage: python -m benchmarks.child MODULE FILE QUICK LIMIT_S SLOWNESS

MODULE has the ``main(run)``; FILE receives the result; QUICK is 0 or 1.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from benchmarks.run import Run
from ocp_mamba.system.cpu_info import widen_openblas


def main() -> None:
    """Run the benchmark that the command line names."""
    module, path, quick, limit_s, slowness = sys.argv[1:]
    widen_openblas()  # as every command does
    run = Run(
        module.rpartition(".")[2],
        Path(path),
        quick=quick == "1",
        limit_s=float(limit_s),
        slowness=float(slowness),
    )
    importlib.import_module(module).main(run)
    run.save()


if __name__ == "__main__":
    main()
