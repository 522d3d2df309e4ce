"""Check and time everything that needs a GPU, in eight minutes on a machine that has one.

Usage: python scripts/gpu_check.py prepare [--build-with PYTHON] [--try-with PYTHON]
       python3 scripts/gpu_check.py run --out FOLDER [--stand-in] [STAGE...]
       python scripts/gpu_check.py paste FOLDER

`prepare` needs a package index; it collects what a bare machine lacks. `run` needs no network, and
of the project's dependencies only torch, numpy and what comes with them; `--stand-in` tries every
stage on a CPU, with small sizes. `paste` writes docs/gpu.md and docs/performance.md. docs/gpu.md
says more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.gpu.stages import BY_NAME


def main(words: list[str] | None = None) -> None:
    """Do what the command line says; ends with 1 where a stage did not end well."""
    args = parser().parse_args(words)
    if args.command == "prepare":
        from benchmarks.gpu.prepare import prepare

        prepare(args.build_with, args.architecture, args.try_with)
    elif args.command == "run":
        from benchmarks.gpu.runner import run

        unknown = sorted(set(args.stages) - set(BY_NAME))
        if unknown:
            sys.exit(f"no stage {', '.join(unknown)}; there are {', '.join(BY_NAME)}")
        if not run(args.out, args.stand_in, args.stages):
            sys.exit(1)
    else:
        from benchmarks.gpu.paste import paste

        paste(args.folder)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the three commands."""
    root = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = root.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser("prepare", help="collect what the machine lacks")
    prepare.add_argument("--build-with", metavar="PYTHON", help="a Python with the machine's torch")
    prepare.add_argument("--architecture", default="9.0", help="compute capability (9.0)")
    prepare.add_argument("--try-with", metavar="PYTHON", help="a Python of the machine's version")
    run = commands.add_parser("run", help="run the stages")
    run.add_argument("stages", nargs="*", metavar="STAGE", help=", ".join(BY_NAME))
    run.add_argument("--out", type=Path, required=True, help="folder of the results")
    run.add_argument("--stand-in", action="store_true", help="a dry run on a CPU")
    paste = commands.add_parser("paste", help="write the tables into the pages")
    paste.add_argument("folder", type=Path)
    return root


if __name__ == "__main__":
    main()
