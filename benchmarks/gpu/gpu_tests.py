"""The tests that need a GPU, by pytest; in a dry run those of the same code that need none."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.frame import ROOT
from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import smallest_configurations
from benchmarks.run import Run

ON_A_GPU = ("-m", "gpu", "tests/kernels/test_gpu.py")
STAND_IN = (
    "-m",
    "not gpu and not slow",
    *(f"tests/kernels/test_{name}.py" for name in ("backend", "cuda", "kernel_sources")),
    "tests/training/test_captured.py",
)
INTERPRET = "TRITON_INTERPRET"
"""Lets Triton's kernels run on a CPU; read when triton is first imported."""


class Counted:
    """A plugin of pytest that counts outcomes and keeps the names of what failed."""

    def __init__(self, save: Callable[[], None] = lambda: None) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[str] = []
        self._save = save

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.outcome] += 1
            if report.failed:
                self.failed.append(report.nodeid)
            self._save()


def main(run: Run, place: Place) -> None:
    """Run the tests in this process and count them."""
    words = STAND_IN if place.stand_in else ON_A_GPU
    table = run.table(place.title("Tests"), [{"command": f"pytest {' '.join(words)}"}])
    goal = place.goal(run, "the tests that need a GPU pass")
    row = table.rows[0]

    def save() -> None:
        """Keep the counts after every test: the stage may be ended at its limit."""
        counts = {name: counted.outcomes[name] for name in ("passed", "failed", "skipped")}
        if counted.failed:
            table.note = f"Failed: {', '.join(counted.failed)}"
        run.fill(row, {**counts, "exit status": "ended before the last test"})

    counted = Counted(save)
    smallest_configurations(place)
    if place.stand_in:
        os.environ[INTERPRET] = "1"
    options = ["-p", "no:cacheprovider", "-q", f"--rootdir={ROOT}"]
    code = int(pytest.main([*options, *words], plugins=[counted]))
    save()
    run.fill(row, {"exit status": code})
    passed, failed = counted.outcomes["passed"], counted.outcomes["failed"]
    run.reach(goal, f"{passed} passed, {failed} failed", code == 0 and passed > 0)
