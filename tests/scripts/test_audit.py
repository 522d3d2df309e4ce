"""The list of dependencies in SECURITY.md: whole, of today's pins, honest about what is unknown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import audit  # noqa: E402
import paste_table  # noqa: E402

ANSWER = {
    "dependencies": [
        {"name": "click", "version": "8.5.1", "vulns": []},
        {"name": "Jinja2", "version": "3.1.6", "vulns": [
            {"id": "PYSEC-1", "fix_versions": ["3.2", "4.0"], "aliases": [], "description": "x"},
            {"id": "GHSA-2", "fix_versions": [], "aliases": [], "description": "y"},
        ]},
        {"name": "torch", "skip_reason": "Dependency not found on PyPI: torch (2.13.0)"},
    ],
    "fixes": [],
}  # fmt: skip


def rows(page: str) -> dict[str, list[str]]:
    begin, end = paste_table.markers("audit")
    lines = page.split(begin)[1].split(end)[0].splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if "|" in line]
    return {name: rest for name, *rest in cells[2:]}


def test_the_page_lists_every_direct_dependency_with_the_versions_of_today() -> None:
    listed, tested = rows((ROOT / "SECURITY.md").read_text(encoding="utf-8")), audit.pins()
    wanted = audit.direct()
    assert {"click", "mlflow", "torch", "sentence-transformers", "psycopg"} <= set(wanted)
    assert list(listed) == list(wanted), "python scripts/audit.py writes the list again"
    for name, (asked, version, *_) in listed.items():
        assert asked == (str(wanted[name].specifier) or "any"), name
        assert version == tested.get(name, audit.NO_PIN), name


def test_a_version_that_was_not_looked_up_is_not_one_without_advisories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip-audit answers, which counts what it cannot find as free of them and exits with 0."""
    program = tmp_path / "pip-audit"
    answer = json.dumps(ANSWER)
    program.write_text(
        f"#!/bin/sh\ncase $1 in --version) echo pip-audit 2.10.1;; *) echo '{answer}';; esac\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    told, asked = audit.advisories(audit.pins())
    assert asked == "pip-audit 2.10.1"
    assert told == {
        "click": "none known",
        "jinja2": "**PYSEC-1**, mended in 3.2, 4.0; **GHSA-2**, mended in no version",
        "torch": "not-run: Dependency not found on PyPI",
    }
    page = "a <!-- audit: begin -->\nold\n<!-- audit: end --> b"
    text = audit.written(page, told, asked, "2026-11-28")
    assert "old" not in text
    assert text.startswith("a ")
    assert text.endswith(" b")
    assert f"on 2026-11-28, pip-audit 2.10.1: 2 of {len(audit.direct())} direct" in text
    assert rows(text)["mlflow"][-1].startswith("not-run")
    assert rows(text)["click"][-1] == "none known"

    program.write_text("#!/bin/sh\necho no way out >&2\nexit 1\n")
    told, _ = audit.advisories({"click": "8.5.1"})
    assert told == {"click": "not-run: no way out"}
    program.unlink()
    told, asked = audit.advisories({"click": "8.5.1"})
    assert (told, asked) == ({"click": "not-run: no pip-audit"}, "without pip-audit")


def test_a_page_without_its_markers_is_refused() -> None:
    with pytest.raises(SystemExit, match="each once"):
        audit.written("no markers", {}, "by nobody", "2026-11-28")
