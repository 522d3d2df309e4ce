"""What a benchmark returns, where its results are kept, and how they become docs/performance.md."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ocp_mamba.system.cpu_info import described

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """Rows with the same keys; None is shown as a dash. ``note`` stands under the table."""

    title: str
    rows: list[dict[str, Cell]]
    note: str = ""


@dataclass(frozen=True)
class Goal:
    """One figure that was asked for: what was measured, and whether it is met."""

    what: str
    measured: str
    met: bool


@dataclass(frozen=True)
class Result:
    """What a benchmark's ``main(quick)`` returns.

    ``figures`` are paths of pictures below docs/, as docs/performance.md links them.
    """

    tables: list[Table]
    goals: list[Goal] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)


def write(name: str, result: Result, *, quick: bool, seconds: float, load: float) -> Path:
    """Keep a result as JSON with what it ran on; returns the file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "benchmark": name,
        "quick": quick,
        "seconds": round(seconds, 1),
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "machine": machine(),
        "load_before": round(load, 1),
        **asdict(result),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> dict[str, Any]:
    """Return what `write` kept."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def machine() -> dict[str, Any]:
    """What the figures depend on, beside the code."""
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def _processor() -> str:
    capabilities = []
    import torch

    for flag in ("avx2", "avx512", "avx512_bf16", "amx_bf16"):
        if torch.cpu.get_capabilities().get(flag, False):
            capabilities.append(flag)
    name = described().get("model name", platform.machine())
    return f"{name} ({', '.join(capabilities)})"


def shown(value: Cell) -> str:
    """A cell as a person reads it: three significant digits, thousands marked."""
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
    """One benchmark's result as Markdown."""
    m = content["machine"]
    parts = [
        f"{content['finished']}, commit {m['commit']}, {m['processor']}, {m['threads']} of "
        f"{m['cores']} cores, torch {m['torch']}; load before {content['load_before']}; "
        f"{content['seconds']:.0f} s" + ("; **quick run**" if content["quick"] else "") + "."
    ]
    if content["goals"]:
        rows = [
            {"goal": g["what"], "measured": g["measured"], "": "met" if g["met"] else "**not met**"}
            for g in content["goals"]
        ]
        parts.append(_table(rows))
    for table in content["tables"]:
        parts.append(f"**{table['title']}**")
        parts.append(_table([{k: shown(v) for k, v in row.items()} for row in table["rows"]]))
        if table["note"]:
            parts.append(table["note"])
    parts += [f"![{name}]({name})" for name in content["figures"]]
    return "\n\n".join(parts)


def _table(rows: list[dict[str, str]]) -> str:
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def render() -> None:
    """Write every kept result into docs/performance.md between its markers.

    Raises:
        SystemExit: the page has no markers for a result.
    """
    page = PAGE.read_text(encoding="utf-8")
    for path in sorted(RESULTS.glob("*.json")):
        begin, end = (f"<!-- {path.stem}: {side} -->" for side in ("begin", "end"))
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{PAGE}: one {begin} and one {end} wanted for {path.name}")
        before, rest = page.split(begin)
        after = rest.split(end)[1]
        page = f"{before}{begin}\n{markdown(read(path))}\n{end}{after}"
    PAGE.write_text(page, encoding="utf-8")
