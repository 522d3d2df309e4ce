"""Retrieval over a million rows; takes 10 to 30 minutes and 12 GB, so it runs only when named."""

from __future__ import annotations

from benchmarks.frame import Result
from benchmarks.retrieval import sizes


def main(quick: bool) -> Result:
    """Measure the exact index and the one that `auto` takes past a million rows."""
    table, goals = sizes({20_000 if quick else 1_000_000: ("exact", "ivf")}, 1000)
    return Result([table], goals)
