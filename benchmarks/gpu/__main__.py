"""Run one stage in this process: what `scripts/gpu_check.py run` starts for each.

Usage: python -m benchmarks.gpu STAGE FILE LIMIT_S [--stand-in]
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from benchmarks import frame
from benchmarks.gpu.place import find_place
from benchmarks.run import Run


def main() -> None:
    """Run the stage that the command line names; FILE keeps all that it has measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("file", type=Path)
    parser.add_argument("limit_s", type=float)
    parser.add_argument("--stand-in", action="store_true")
    args = parser.parse_args()
    place = find_place(args.stand_in)
    run = Run(args.stage, args.file, quick=False, limit_s=args.limit_s)
    run.extra = {"stand_in": place.stand_in, "card": place.card(), "error": ""}
    run.save()
    try:
        importlib.import_module(f"benchmarks.gpu.{args.stage}").main(run, place)
    except BaseException as error:
        run.extra["error"] = text = f"{type(error).__name__}: {error}"[:500]
        for row in (row for table in run.result.tables for row in table.rows):
            if row.get(frame.REMARK) == run.not_run:
                run.skip(row, text.splitlines()[0])
        raise
    finally:
        run.save()


if __name__ == "__main__":
    main()
