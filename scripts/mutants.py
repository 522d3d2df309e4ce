"""Change the code that decides what is true, line by line, and count the changes that tests notice.

Usage: python scripts/mutants.py [MODULE...]

mutmut makes the changes ("mutants") in the modules that scripts/mutants.toml names, and
`mutants_fork` runs on each those of the module's tests, named there too, that call the changed
function. This script lists what survived and writes docs/mutants.md. It ends with 1 where fewer
than 90% of a module's mutants are killed; one that was not run is not killed.

With modules named, such as ``data.split``, only their mutants are run, and the page is not written.
A mutant that was killed stays so until its function changes; what survived is run again each time.
Remove the folder ``mutants`` to begin anew.

A mutant that no test can notice, because it does the same, stands with its reason in
scripts/mutants_judged.toml and counts for nothing. One that no test runs counts as survived.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from mutants_fork import TIMED_OUT
from mutants_make import NOTICED, ROOT, MutatedModule, copy_project
from tabulate import tabulate

PAGE = ROOT / "docs" / "mutants.md"
SCRIPTS = ROOT / "scripts"
PACKAGE = "ocp_mamba."
GOAL = 0.9
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"


@dataclass
class Count:
    """What became of the mutants of one module.

    Attributes:
        killed: how many a test noticed.
        timed_out: how many of them by taking too long.
        not_run: how many were not run.
        judged: the change and the reason why no test can notice it.
        patterns: how many changes no test can notice for each reason that is given by a pattern.
        survived: the changes that no test noticed.
    """

    killed: int = 0
    timed_out: int = 0
    not_run: int = 0
    judged: list[tuple[str, str]] = field(default_factory=list)
    patterns: Counter[str] = field(default_factory=Counter)
    survived: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the mutants killed, of those that a test can notice."""
        return self.killed / max(1, self.killed + len(self.survived) + self.not_run)

    @property
    def equal(self) -> int:
        """How many no test can notice."""
        return len(self.judged) + self.patterns.total()


def main() -> None:
    """Run the mutants, write the page, end with 1 where a module is below the goal."""
    copy_project()
    tests = tomllib.loads((SCRIPTS / "mutants.toml").read_text(encoding="utf-8"))
    modules = {name: MutatedModule(PACKAGE + name, files) for name, files in tests.items()}
    for module in modules.values():
        module.make()
    judged = tomllib.loads((SCRIPTS / "mutants_judged.toml").read_text(encoding="utf-8"))
    for name in sys.argv[1:] or modules:
        modules[name].run(lambda change: _why_equal(change, judged) is not None)
    counts = {name: count(module, judged) for name, module in modules.items()}
    print(table(counts))
    if not sys.argv[1:]:
        write_page(counts)
    if low := [name for name, found in counts.items() if found.share < GOAL]:
        sys.exit(f"fewer than {GOAL:.0%} killed: {', '.join(low)}")


def write_page(counts: Mapping[str, Count]) -> None:
    """Put the results into docs/mutants.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{page(counts)}\n{END}{after}", encoding="utf-8")
    print(f"\nwritten: {PAGE}")


def count(module: MutatedModule, judged: Mapping[str, Any]) -> Count:
    """Return what became of a module's mutants.

    Args:
        module: its results.
        judged: ``changes`` has a reason by a change, ``patterns`` one by a regular expression.
    """
    found = Count()
    for change, code in module.results.values():
        if code in NOTICED:
            found.killed += 1
            found.timed_out += code == TIMED_OUT
        elif code is None:
            found.not_run += 1
        elif (why := _why_equal(change, judged)) is None:
            found.survived.append(change)
        elif why in judged["patterns"].values():
            found.patterns[why] += 1
        else:
            found.judged.append((change, why))
    return found


def _why_equal(change: str, judged: Mapping[str, Any]) -> str | None:
    """Why no test can notice a change, or None."""
    if change in judged["changes"]:
        return str(judged["changes"][change])
    return next((why for p, why in judged["patterns"].items() if re.search(p, change)), None)


def table(counts: Mapping[str, Count]) -> str:
    """Return one row a module, and one of all."""
    head = ["module", "mutants", "killed", "by a time-out", "survived", "not run"]
    rows = [[name, *_row([found])] for name, found in counts.items()]
    rows.append(["all", *_row(counts.values())])
    head += ["no test can notice", "killed share"]
    return tabulate(rows, head, tablefmt="github", intfmt=",", disable_numparse=[7])


def _row(counts: Iterable[Count]) -> list[object]:
    counts = list(counts)
    killed, timed_out, not_run, equal = (
        sum(getattr(found, name) for found in counts)
        for name in ("killed", "timed_out", "not_run", "equal")
    )
    survived = sum(len(found.survived) for found in counts)
    wanted = killed + survived + not_run
    share = f"{killed / max(1, wanted):.1%}"
    return [wanted + equal, killed, timed_out, survived, not_run, equal, share]


def page(counts: Mapping[str, Count]) -> str:
    """Return the part of the page that the results make."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"{when}, commit {commit}, Python {platform.python_version()}.", table(counts)]
    total: Counter[str] = sum((found.patterns for found in counts.values()), Counter())
    if total:
        parts.append("### Changes that no test can notice, by kind")
    parts.append(_listing("", [f"{n:,} times: {why}" for why, n in total.most_common()]))
    for name, found in counts.items():
        if found.survived or found.judged:
            parts.append(f"### {name}")
        parts.append(_listing("Survived:", [_code(change) for change in found.survived]))
        equal = [f"{_code(change)}: {why}" for change, why in found.judged]
        parts.append(_listing("No test can notice:", equal))
    return "\n\n".join(part for part in parts if part)


def _code(text: str) -> str:
    mark = "``" if "`" in text else "`"
    return f"{mark}{text}{mark}"


def _listing(title: str, lines: Sequence[str]) -> str:
    listed = "\n".join(f"- {line}" for line in lines)
    return "\n\n".join(part for part in (title, listed) if part) if lines else ""


if __name__ == "__main__":
    main()
