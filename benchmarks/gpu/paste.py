"""Paste what `runner` measured on a GPU into docs/gpu.md and docs/performance.md."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import frame
from benchmarks.gpu.stages import STAGES

NAME, STATUS, GOALS = "gpu", "gpu status", "gpu goals"
PAGE = frame.ROOT / "docs" / "gpu.md"


def paste(folder: Path) -> None:
    """Keep the results as those of the card, and write both pages.

    Raises:
        SystemExit: the results are of a dry run, or not of one card and one run.
    """
    stages = read(folder)
    content = merged(stages)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "gpu.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        kept = frame.keep(path)
    frame.render()
    page = PAGE.read_text(encoding="utf-8")
    page = frame.between(PAGE, page, STATUS, status(content))
    goals = frame.markdown(content | {"tables": content["tables"][:2]})
    page = frame.between(PAGE, page, GOALS, goals)
    PAGE.write_text(page, encoding="utf-8")
    print(f"written: {kept}, {frame.PAGE}, {PAGE}")


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the results of the stages that ran, in their order.

    Raises:
        SystemExit: there are none, they are of a dry run, or not of one card and one run.
    """
    paths = [path for stage in STAGES if (path := folder / f"{stage.name}.json").is_file()]
    found = [frame.read(path) for path in paths]
    if not found:
        raise SystemExit(f"{folder} has no results of `gpu_check.py run`")
    dry = [path.name for path, c in zip(paths, found, strict=True) if c.get("stand_in", True)]
    if dry:
        raise SystemExit(
            f"{folder}: {', '.join(dry)} are of a dry run on a CPU (--stand-in), which measures "
            "nothing; run `gpu_check.py run` on a machine with a GPU"
        )
    for what in ("card", "prepared"):
        values = {json.dumps(content.get(what)) for content in found}
        if len(values) > 1:
            raise SystemExit(f"{folder}: the stages are not of one run: {what} {sorted(values)}")
    return found


def merged(stages: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the stages' results as one, whose machine is named by the card."""
    first = stages[0]
    ran = {content["benchmark"] for content in stages}
    absent = [stage.name for stage in STAGES if stage.name not in ran]
    tables = [table for content in stages for table in content["tables"]]
    problems = [
        f"{content['benchmark']}: {text}"
        for content in stages
        for text in (content.get("error"), content.get("ended"))
        if text and text != "well"
    ] + [f"{name}: not-run" for name in absent]
    if problems:
        rows = [{"stage": text.split(": ")[0], "what happened": text} for text in problems]
        tables.append({"title": "Stages that did not end well", "rows": rows, "note": ""})
    machine = first["machine"] | {"processor": f"{first['card']} ({first['machine']['processor']})"}
    return first | {
        "benchmark": NAME,
        "seconds": round(sum(content["seconds"] for content in stages), 1),
        "finished": stages[-1]["finished"],
        "machine": machine,
        "complete": not problems and all(content["complete"] for content in stages),
        "tables": tables,
        "goals": [goal for content in stages for goal in content["goals"]],
        "figures": [],
    }


def status(content: dict[str, Any]) -> str:
    """Return the sentence that says on which card this project has run, and when."""
    m = content["machine"]
    return (
        f"This project ran on one {content['card']} on {content['finished']}, commit "
        f"{m['commit']}, torch {m['torch']}. The goals below and the tables in "
        "[performance.md](performance.md#on-a-gpu) are what it measured."
    )
