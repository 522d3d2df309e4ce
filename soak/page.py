"""The last results of each campaign, kept as JSON, and how they become docs/reliability.md."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import frame
from soak.result import OUTCOMES, Result, counted

RESULTS = frame.ROOT / "soak" / "results"
PAGE = frame.ROOT / "docs" / "reliability.md"
SUMMARY = "campaigns"
"""Name of the markers between which all campaigns stand side by side."""

TRIED = ("survived", "refused", "lost")
SHOWN_DETAILS = 20
"""Lost and not-run results of a campaign that the page names; the counts have them all."""

LONGEST_DETAIL = 300

Counts = dict[str, int]


def content_of(campaign: str, results: Sequence[Result], *, seconds: float) -> dict[str, Any]:
    """Return a campaign's results as they are kept, with date and processor."""
    told = [r for r in results if r.outcome in ("lost", "not-run")]
    return {
        "campaign": campaign,
        "finished": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "seconds": round(seconds, 1),
        "machine": frame.machine(),
        "cases": counted(results),
        "details": [
            {"case": r.case, "outcome": r.outcome, "detail": r.detail[:LONGEST_DETAIL]}
            for r in told[:SHOWN_DETAILS]
        ],
    }


def keep(content: dict[str, Any]) -> Path:
    """Write a campaign's results to the place from which the page is made; returns the file."""
    path = RESULTS / f"{content['campaign']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".tmp")
    written.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    written.replace(path)
    return path


def kept(campaign: str) -> dict[str, Any] | None:
    """Return a campaign's last results, or None where it has never run."""
    path = RESULTS / f"{campaign}.json"
    return frame.read(path) if path.is_file() else None


def total(cases: dict[str, Counts]) -> Counts:
    """Return the outcomes of all cases together, and how many were tried."""
    counts = {name: sum(case[name] for case in cases.values()) for name in OUTCOMES}
    return {"tried": sum(counts[name] for name in TRIED), **counts}


def markdown(content: dict[str, Any]) -> str:
    """Return one campaign's results as Markdown: conditions, a row a case, what was lost."""
    machine = content["machine"]
    parts = [
        f"{content['finished']}, commit {machine['commit']}, {frame.named(machine)}, "
        f"Python {machine['python']}, torch {machine['torch']}; {content['seconds']:.0f} s.",
        frame.table([_row({"case": name}, counts) for name, counts in content["cases"].items()]),
    ]
    if content["details"]:
        parts.append("\n".join(
            f"- {d['outcome']}: {d['case']}: {_one_line(d['detail'])}" for d in content["details"]
        ))  # fmt: skip
    return "\n\n".join(parts)


def _row(first: dict[str, str], cases: Counts) -> dict[str, str]:
    counts = total({"": cases})
    row = first | {name: f"{counts[name]:,}" for name in ("tried", *TRIED)}
    return row | ({"not-run": str(counts["not-run"])} if counts["not-run"] else {})


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def render(campaigns: Sequence[str]) -> None:
    """Write the last results of every campaign into docs/reliability.md between its markers.

    Raises:
        SystemExit: the page has no markers for a campaign.
    """
    page = PAGE.read_text(encoding="utf-8")
    rows = []
    for name in campaigns:
        content = kept(name)
        if content is None:
            rows.append({"campaign": name, "tried": "not-run"})
            section = "not-run"
        else:
            cases = total(content["cases"])
            where = {"when": content["finished"], "processor": frame.named(content["machine"])}
            rows.append(_row({"campaign": name}, {k: cases[k] for k in OUTCOMES}) | where)
            section = markdown(content)
        page = frame.between(PAGE, page, name, section)
    PAGE.write_text(frame.between(PAGE, page, SUMMARY, frame.table(rows)), encoding="utf-8")
