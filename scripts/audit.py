"""List the direct dependencies in SECURITY.md, with their versions and what pip-audit knows.

Usage: python scripts/audit.py

pip-audit has to be on the PATH, from an environment of its own; without it, all is not-run.

What stands between the markers is replaced; nothing else is touched. A version that pip-audit could
not look up is ``not-run``, with its reason: pip-audit itself counts it as one without advisories.
"""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paste_table import markers
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "SECURITY.md"
EXTRAS = ("encode", "ontology", "gpu", "postgres", "server", "vec2text")
"""The extras that users install; the others are for development."""
NOT_RUN, NONE_KNOWN, NO_PIN = "not-run", "none known", "not pinned"
LICENCE_CHARACTERS = 40


def direct() -> dict[str, Requirement]:
    """Return the project's direct dependencies by name; those of the extras come last."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = list(project["dependencies"])
    for extra in EXTRAS:
        lines += project["optional-dependencies"][extra]
    found: dict[str, Requirement] = {}
    for line in lines:
        requirement = Requirement(line)
        if (name := canonicalize_name(requirement.name)) != "ocp-mamba":
            found.setdefault(name, requirement)
    return found


def pins() -> dict[str, str]:
    """Return the tested version of each package in constraints.txt; the first where it has two."""
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            version = str(pin.specifier).removeprefix("==")
            found.setdefault(canonicalize_name(pin.name), version)
    return found


def licence(name: str) -> str:
    """Return what an installed package says of its licence, cut to one short line."""
    try:
        about = metadata.metadata(name).json
    except metadata.PackageNotFoundError:
        return "not installed"
    said = str(about.get("license_expression") or about.get("license") or "")
    kinds = [c.split(":: ")[-1] for c in about.get("classifier", []) if c.startswith("License")]
    line = said.strip().partition("\n")[0]
    if not line or len(line) > LICENCE_CHARACTERS:
        line = ", ".join(kinds) or line[:LICENCE_CHARACTERS]
    return line or "not said"


def advisories(tested: Mapping[str, str]) -> tuple[dict[str, str], str]:
    """Ask pip-audit about versions.

    Args:
        tested: versions by name.

    Returns:
        What is known of each package, and by what it was asked.
    """
    program = shutil.which("pip-audit")
    if program is None:
        return dict.fromkeys(tested, f"{NOT_RUN}: no pip-audit"), "without pip-audit"
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text("".join(f"{name}=={version}\n" for name, version in tested.items()))
        command = [program, "-r", str(wanted), "--no-deps", "--disable-pip", "-f", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    asked = "pip-audit " + _version(program)
    try:
        return dict(known(json.loads(done.stdout))), asked
    except (ValueError, KeyError):
        reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:120]
        return dict.fromkeys(tested, f"{NOT_RUN}: {reason}"), asked


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split()[-1] if done.stdout else "of an unknown version"


def known(answer: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield each package of pip-audit's answer, and its advisories in words."""
    for found in answer["dependencies"]:
        name = canonicalize_name(found["name"])
        if "skip_reason" in found:
            yield name, f"{NOT_RUN}: {found['skip_reason'].partition(': ')[0]}"
            continue
        words = []
        for one in found["vulns"]:
            mended = ", ".join(one["fix_versions"]) or "no version"
            words.append(f"**{one['id']}**, mended in {mended}")
        yield name, "; ".join(words) or NONE_KNOWN


def table(told: Mapping[str, str]) -> str:
    """Return a row for each direct dependency.

    Args:
        told: what is known, by name.
    """
    tested = pins()
    rows = [
        [
            name,
            str(requirement.specifier) or "any",
            tested.get(name, NO_PIN),
            licence(name),
            told.get(name, f"{NOT_RUN}: {NO_PIN}").replace("|", "/"),
        ]
        for name, requirement in direct().items()
    ]
    columns = ["dependency", "range", "tested version", "licence", "advisories"]
    return tabulate(rows, columns, tablefmt="github", disable_numparse=True)


def written(text: str, told: Mapping[str, str], asked: str, day: str) -> str:
    """Return a page's text with the list between the markers.

    Raises:
        SystemExit: a marker is missing.
    """
    begin, end = markers("audit")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"SECURITY.md needs {begin} and {end}, each once")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    looked_up = sum(not words.startswith(NOT_RUN) for words in told.values())
    line = (
        f"Written by `scripts/audit.py` on {day}, {asked}: {looked_up} of {len(direct())} direct "
        "dependencies were compared with the published advisories."
    )
    return f"{before}{begin}\n{line}\n\n{table(told)}\n{end}{after}"


def main() -> None:
    """Ask pip-audit, and write the list into SECURITY.md."""
    tested = {name: version for name, version in pins().items() if name in direct()}
    told, asked = advisories(tested)
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(written(page, told, asked, day), encoding="utf-8")


if __name__ == "__main__":
    main()
