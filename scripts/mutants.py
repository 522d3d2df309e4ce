"""Change the code that decides what is true, line by line, and count the changes that tests notice.

Usage: python scripts/mutants.py

mutmut makes the changes ("mutants") in the modules that ``[tool.mutmut]`` of pyproject.toml names,
and runs the tests that it names there. This script starts it, lists what survived, and writes
docs/mutants.md. It ends with 1 where fewer than 90% of a module's mutants are killed.

A mutant that no test can notice, because it does the same, stands with its reason in
scripts/mutants_judged.toml and counts for nothing. One that no test runs counts as survived.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mutants.md"
JUDGED = ROOT / "scripts" / "mutants_judged.toml"
RESULTS = ROOT / "mutants"
MUTMUT = [str(Path(sys.executable).with_name("mutmut"))]
GOAL = 0.9
BEGIN, END = "<!-- mutants: begin -->", "<!-- mutants: end -->"
KILLED = frozenset({1, 3, 24, -24, 36, 152, 255, -9, -11})
"""mutmut's exit codes of a mutant that a test noticed, a time-out and a crash included."""


@dataclass
class Module:
    """The mutants of one module.

    Attributes:
        killed: how many a test noticed.
        judged: the change and the reason why no test can notice it.
        survived: the changes that no test noticed.
    """

    killed: int = 0
    judged: list[tuple[str, str]] = field(default_factory=list)
    survived: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Share of the mutants killed, of those that a test can notice."""
        return self.killed / max(1, self.killed + len(self.survived))


def main() -> None:
    """Run mutmut, write the page, end with 1 where a module is below the goal."""
    subprocess.run([*MUTMUT, "run"], cwd=ROOT, check=False)
    modules = read_results(tomllib.loads(JUDGED.read_text(encoding="utf-8")))
    if not modules:
        sys.exit("mutmut left no result; its own output above says why")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{page(modules)}\n{END}{after}", encoding="utf-8")
    print(table(modules), f"\n\nwritten: {PAGE}")
    if low := [name for name, module in modules.items() if module.share < GOAL]:
        sys.exit(f"fewer than {GOAL:.0%} killed: {', '.join(low)}")


def read_results(judged: Mapping[str, str]) -> dict[str, Module]:
    """Return mutmut's results by module; ``judged`` has a reason by the change that it is of."""
    modules: dict[str, Module] = defaultdict(Module)
    for name, code in sorted(_exit_codes()):
        module = modules[name.rsplit(".", 1)[0]]
        if code in KILLED:
            module.killed += 1
            continue
        change = _change(name)
        if change in judged:
            module.judged.append((change, judged[change]))
        else:
            module.survived.append(change)
    return dict(modules)


def _exit_codes() -> Iterator[tuple[str, int | None]]:
    for path in sorted(RESULTS.rglob("*.meta")):
        yield from json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"].items()


def _change(name: str) -> str:
    """A mutant as a person reads it: its function, the line as it is, and the line as changed."""
    shown = subprocess.run(
        [*MUTMUT, "show", name], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = [line for line in shown.splitlines() if not line.startswith(("---", "+++"))]
    before = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    changed = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    function = name.rsplit(".", 1)[1].split("__mutmut_")[0].removeprefix("x").lstrip("_ǁ")
    return f"{function.replace('ǁ', '.')}: {before}  →  {changed}"


def table(modules: Mapping[str, Module]) -> str:
    """Return one row a module."""
    rows = [
        [
            name.removeprefix("ocp_mamba."),
            module.killed + len(module.survived) + len(module.judged),
            module.killed,
            len(module.survived),
            len(module.judged),
            f"{module.share:.1%}",
        ]
        for name, module in modules.items()
    ]
    head = ["module", "mutants", "killed", "survived", "no test can notice", "killed share"]
    return tabulate(rows, head, tablefmt="github")


def page(modules: Mapping[str, Module]) -> str:
    """Return the part of the page that the results make."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [f"{when}, commit {commit}, Python {platform.python_version()}.", table(modules)]
    for name, module in modules.items():
        if module.survived or module.judged:
            parts.append(f"### {name}")
        parts += [_listing("Survived:", [f"`{change}`" for change in module.survived])]
        parts += [_listing("No test can notice:", [f"`{c}`: {why}" for c, why in module.judged])]
    return "\n\n".join(part for part in parts if part)


def _listing(title: str, lines: list[str]) -> str:
    return "\n".join([title, "", *(f"- {line}" for line in lines)]) if lines else ""


if __name__ == "__main__":
    main()
