"""Run campaigns, print what was tried and lost, and write docs/reliability.md.

Usage: python -m soak [--quick] [NAME...]

Without names all run. The page keeps the last results of those that do not run. The exit code is 1
when anything is lost or a campaign ends with an error. Example: python -m soak --quick fuzz
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import time
import traceback

from soak import page
from soak.result import NotRunError, Result

CAMPAIGNS = ("kill", "outage", "fuzz", "concurrency", "endpoint", "peers")
"""Modules of this package with ``run(quick, log) -> list[Result]``, in the order of the page."""

PEERS, OURS = "peers", "ocp_mamba"
"""What peers lose is shown and is no failure; their campaign's cases begin with a name, and those
of this package with `OURS`."""


def main(words: list[str] | None = None) -> int:
    """Run what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m soak", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CAMPAIGNS))
    parser.add_argument(
        "--quick", action="store_true", help="the short form of each; the page stays as it is"
    )
    args = parser.parse_args(words)
    if unknown := sorted(set(args.names) - set(CAMPAIGNS)):
        parser.error(f"no campaign {', '.join(unknown)}; there are {', '.join(CAMPAIGNS)}")
    lines, failed = {}, False
    for name in args.names or CAMPAIGNS:
        lines[name], campaign_failed = _campaign(name, quick=args.quick)
        failed |= campaign_failed
    print("\n" + "\n".join(f"{name:<12} {line}" for name, line in lines.items()), flush=True)
    if not args.quick:
        page.render(CAMPAIGNS)
        print(f"\nwritten: {page.PAGE}")
    return int(failed)


def _campaign(name: str, *, quick: bool) -> tuple[str, bool]:
    """Run one campaign; returns its line of the summary, and whether it failed."""
    print(f"\n== {name}", flush=True)
    if not _exists(name):
        return f"not-run: there is no soak/{name}.py", False
    started = time.monotonic()
    try:
        run = importlib.import_module(f"soak.{name}").run
        results: list[Result] = run(quick, lambda line: print(f"  {line}", flush=True))
    except (NotRunError, ModuleNotFoundError) as error:
        return f"not-run: {error}", False
    except Exception as error:
        traceback.print_exc()
        return f"ended with an error: {type(error).__name__}: {error}", True
    content = page.content_of(name, results, seconds=time.monotonic() - started)
    print(page.markdown(content), flush=True)
    if not quick:
        page.keep(content)
    counts = page.total(content["cases"])
    line = ", ".join(f"{key} {counts[key]:,}" for key in ("tried", *page.TRIED))
    if counts["not-run"]:
        line += f", not-run {counts['not-run']}"
    return line, any(_is_our_loss(result) for result in results)


def _exists(name: str) -> bool:
    return importlib.util.find_spec(f"soak.{name}") is not None


def _is_our_loss(result: Result) -> bool:
    ours = result.campaign != PEERS or result.case.startswith(OURS)
    return result.outcome == "lost" and ours


if __name__ == "__main__":
    sys.exit(main())
