"""Retrieval over a million rows; takes 10 to 30 minutes and 12 GB, so it runs only when named."""

from __future__ import annotations

from benchmarks.retrieval import sizes
from benchmarks.run import Run


def main(run: Run) -> None:
    """Measure the exact index and the one that `auto` takes past a million rows."""
    sizes(run, {20_000 if run.quick else 1_000_000: ("exact", "ivf")}, 1000)()
