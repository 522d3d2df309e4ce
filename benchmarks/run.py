"""One run of a benchmark: what it declares, what it has measured, and when its time is over.

A benchmark declares its goals and the rows of its tables before it measures. What is declared and
not yet measured says "not run", and every change is saved at once. So a benchmark that is stopped,
by its own limit or from outside, leaves whole tables behind.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from benchmarks import frame, timing
from benchmarks.frame import Cell, Goal, Result, Row, Table


class Run:
    """What a benchmark's ``main(run)`` receives."""

    def __init__(
        self, name: str, path: Path, *, quick: bool, limit_s: float, slowness: float = 1.0
    ) -> None:
        """Start the clock.

        Args:
            name: the benchmark.
            path: the JSON file that keeps the result.
            quick: small shapes and few rounds.
            limit_s: seconds on the reference machine after which nothing more is started.
            slowness: how many times as long this machine takes (`calibration.slowness`); it
                multiplies this limit and those of `rounds`.
        """
        self.name, self.path, self.quick, self.slowness = name, path, quick, slowness
        self.limit_s = limit_s * slowness
        self.result = Result()
        self.extra: dict[str, object] = {}
        """What the JSON file holds beside the results."""
        self._load, self._started = os.getloadavg()[0], time.monotonic()
        self.not_run = f"{frame.NOT_RUN}: the limit of {frame.shown(self.limit_s)} s was reached"

    def over(self) -> bool:
        """Whether the time is over: then nothing more is to be started."""
        return self.seconds() >= self.limit_s

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._started

    def goal(self, what: str) -> Goal:
        """Declare a goal; `reach` says later what was measured."""
        self.result.goals.append(Goal(what))
        self.save()
        return self.result.goals[-1]

    def reach(self, goal: Goal, measured: str, met: bool) -> None:
        """Say what was measured for a goal."""
        goal.measured, goal.met = measured, met
        self.save()

    def table(self, title: str, names: Iterable[Mapping[str, Cell]], note: str = "") -> Table:
        """Declare a table; ``names`` are the cells by which its rows are told apart."""
        rows: list[Row] = [{**cells, frame.REMARK: self.not_run} for cells in names]
        self.result.tables.append(Table(title, rows, note))
        self.save()
        return self.result.tables[-1]

    def add(self, table: Table, goals: Iterable[Goal] = ()) -> None:
        """Keep a table that was not declared before, and its goals."""
        self.result.tables.append(table)
        self.result.goals.extend(goals)
        self.save()

    def fill(self, row: Row, cells: Mapping[str, Cell]) -> None:
        """Put measured cells into a declared row."""
        row.pop(frame.REMARK, None)
        row.update(cells)
        self.save()

    def skip(self, row: Row, reason: str) -> None:
        """Say for what other reason than the limit a declared row is not measured."""
        row[frame.REMARK] = f"{frame.NOT_RUN}: {reason}"
        self.save()

    def rounds(
        self,
        contestants: Mapping[str, Callable[[], object]],
        *,
        n_rounds: int,
        warmup: int = 1,
        limit_s: float = 60.0,
    ) -> dict[str, timing.Timing]:
        """Call `timing.rounds` within the time that is left; without those that it did not time."""
        return timing.rounds(
            contestants,
            n_rounds=n_rounds,
            warmup=warmup,
            limit_s=limit_s * self.slowness,
            over=self.over,
        )

    def peaks(self, calls: Mapping[str, Callable[[], object]]) -> dict[str, float | None]:
        """Call `timing.peak_mib` for each within the time that is left; None for the others."""
        return {n: None if self.over() else timing.peak_mib(call) for n, call in calls.items()}

    def save(self) -> None:
        """Keep what is measured so far."""
        remarks: list[Cell] = [table.note for table in self.result.tables]
        remarks += [row.get(frame.REMARK) for table in self.result.tables for row in table.rows]
        frame.write(
            self.path,
            self.name,
            self.result,
            quick=self.quick,
            seconds=self.seconds(),
            load=self._load,
            slowness=self.slowness,
            extra=self.extra,
            complete=self.not_run not in remarks
            and all(goal.met is not None for goal in self.result.goals),
        )
