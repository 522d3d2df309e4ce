"""What a benchmark measures, where its results are kept, and how they become docs/performance.md.

The results of a machine stand in ``results/PROCESSOR/NAME.json``; the page shows each processor's.
"""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ocp_mamba.system.cpu_info import described

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"
SUMMARY = "processors"
"""Name of the markers between which the goals of all processors stand side by side."""

NOT_RUN = "not run"
REMARK = ""
"""Header of the column that says why a row was not measured."""

Cell = str | int | float | None
Row = dict[str, Cell]


@dataclass
class Table:
    """Rows of cells by their column; None is shown as a dash. ``note`` stands under the table."""

    title: str
    rows: list[Row]
    note: str = ""


@dataclass
class Goal:
    """One number that was asked for: what was measured, and whether it is met."""

    what: str
    measured: str = NOT_RUN
    met: bool | None = None


@dataclass
class Result:
    """What a benchmark has declared and measured.

    ``figures`` are paths of pictures below docs/, as docs/performance.md links them.
    """

    tables: list[Table] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


def write(
    path: Path,
    name: str,
    result: Result,
    *,
    quick: bool,
    seconds: float,
    load: float,
    slowness: float = 1.0,
    complete: bool = True,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Keep a result as JSON with what it ran on; a reader never finds half a file."""
    content = {
        "benchmark": name,
        "quick": quick,
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine(),
        "load_before": round(load, 1),
        "slowness": round(slowness, 2),
        "complete": complete,
        **asdict(result),
        **(extra or {}),
    }
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    written.replace(path)


def read(path: Path) -> dict[str, Any]:
    """Return what `write` kept."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def keep(path: Path) -> Path:
    """Copy a result to the place of its processor; returns the new file."""
    content = read(path)
    kept = RESULTS / slug(content["machine"]) / f"{content['benchmark']}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return kept


@cache
def machine() -> dict[str, Any]:
    """Return what the results depend on, beside the code."""
    import torch

    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
            check=False,
        ).stdout.strip()  # fmt: skip
    except OSError:  # a copy of the folder on a machine without git
        commit = ""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def _processor() -> str:
    import torch

    found = torch.cpu.get_capabilities()
    flags = ("avx2", "avx512", "avx512_bf16", "amx_bf16")
    name = described().get("model name", platform.machine())
    return f"{name} ({', '.join(flag for flag in flags if found.get(flag, False))})"


def named(machine: dict[str, Any]) -> str:
    """Return a machine's processor as a heading names it."""
    cores = machine["cores"]
    return f"{machine['processor']}, {cores} core{'' if cores == 1 else 's'}"


def slug(machine: dict[str, Any]) -> str:
    """Return the name of the folder of a machine's results, by its processor and cores."""
    return re.sub(r"[^a-z0-9]+", "-", named(machine).lower()).strip("-")


def shown(value: Cell) -> str:
    """Return a cell as a person reads it: three significant digits, thousands marked."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        digits = 2 - math.floor(math.log10(abs(value))) if value else 0
        return f"{value:,.{max(0, min(digits, 6))}f}"
    return value


def markdown(content: dict[str, Any]) -> str:
    """Return one benchmark's result as Markdown."""
    parts = [_conditions(content)]
    if content["goals"]:
        parts.append(
            table([
                {"goal": g["what"], "measured": g["measured"], REMARK: _verdict(g["met"])}
                for g in content["goals"]
            ])
        )  # fmt: skip
    for part in content["tables"]:
        parts.append(f"**{part['title']}**")
        parts.append(table([{k: shown(v) for k, v in row.items()} for row in part["rows"]]))
        if part["note"]:
            parts.append(part["note"])
    parts += [f"![{name}]({name})" for name in content["figures"]]
    return "\n\n".join(parts)


def _conditions(content: dict[str, Any]) -> str:
    """Return the line that says when, on what and by which commit a result was measured."""
    m, slow = content["machine"], content.get("slowness", 1.0)
    line = (
        f"{content['finished']}, commit {m['commit']}, {m['processor']}, {m['threads']} of "
        f"{m['cores']} cores, torch {m['torch']}; load before {content['load_before']}; "
        f"{content['seconds']:.0f} s"
    )
    if slow > 1:
        line += f"; time limits {slow:.1f} times those of the reference machine"
    if not content.get("complete", True):
        line += "; **stopped before its end**"
    return line + ("; **quick run**" if content["quick"] else "") + "."


def _verdict(met: bool | None) -> str:
    if met is None:
        return ""
    return "met" if met else "**not met**"


def table(rows: list[dict[str, str]]) -> str:
    """Return rows as a table; the remarks come last, and a cell that is not known stays empty."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    columns.sort(key=lambda column: column == REMARK)
    cells = [[row.get(column, "") for column in columns] for row in rows]
    return tabulate(cells, headers=columns, tablefmt="github", disable_numparse=True)


def render() -> None:
    """Write every kept result into docs/performance.md between its markers.

    Raises:
        SystemExit: the page has no markers for a result.
    """
    page = PAGE.read_text(encoding="utf-8")
    results = [read(path) for path in sorted(RESULTS.glob("*/*.json"))]
    sections: dict[str, list[str]] = {}
    for content in results:
        section = f"### {named(content['machine'])}\n\n{markdown(content)}"
        sections.setdefault(content["benchmark"], []).append(section)
    page = between(PAGE, page, SUMMARY, side_by_side(results))
    for name, parts in sections.items():
        page = between(PAGE, page, name, "\n\n".join(parts))
    PAGE.write_text(page, encoding="utf-8")


def side_by_side(results: list[dict[str, Any]]) -> str:
    """Return a table of all goals with a column for each processor."""
    rows: dict[str, dict[str, str]] = {}
    for content in results:
        for goal in content["goals"]:
            row = rows.setdefault(goal["what"], {"goal": goal["what"]})
            verdict = _verdict(goal["met"])
            row[named(content["machine"])] = f"{goal['measured']} {verdict}".rstrip()
    return table(list(rows.values()))


def between(path: Path, page: str, name: str, text: str) -> str:
    """Return a page with a text between the markers of a name; ``path`` is the page's file.

    Raises:
        SystemExit: the page does not have these markers once.
    """
    begin, end = (f"<!-- {name}: {side} -->" for side in ("begin", "end"))
    if page.count(begin) != 1 or page.count(end) != 1:
        raise SystemExit(f"{path}: one {begin} and one {end} wanted")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"
