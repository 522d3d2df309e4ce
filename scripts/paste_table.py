"""Paste a table that `make quality` or `ocp-mamba variants` wrote into README.md.

Usage: python scripts/paste_table.py quality outputs/quality/quality.md
       python scripts/paste_table.py variants outputs/variants/variants.md

Figures reach the README by this script alone. What stands between the markers is replaced; nothing
else is touched.
"""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
FIRST_CELL = {"quality": "| predictor", "variants": "| variant"}
"""How the table of each command begins, by the command's name."""


def markers(name: str) -> tuple[str, str]:
    """Return what stands in the README before and after the table of a command."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def pasted(name: str, readme: str, table: str) -> str:
    """Return the README with the table between the command's markers.

    Raises:
        SystemExit: a marker is missing, or the table is none of that command.
    """
    begin, end = markers(name)
    if readme.count(begin) != 1 or readme.count(end) != 1:
        raise SystemExit(f"README.md needs {begin} and {end}, each once")
    if not table.startswith(FIRST_CELL[name]) or "families" not in table:
        raise SystemExit(f"this is not the {name}.md that `ocp-mamba {name}` writes")
    before, rest = readme.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table.strip()}\n{end}{after}"


def main() -> None:
    """Replace the part of the README between the markers."""
    if len(sys.argv) != 3 or sys.argv[1] not in FIRST_CELL:
        raise SystemExit(__doc__)
    table = Path(sys.argv[2]).read_text(encoding="utf-8")
    readme = README.read_text(encoding="utf-8")
    README.write_text(pasted(sys.argv[1], readme, table), encoding="utf-8")


if __name__ == "__main__":
    main()
