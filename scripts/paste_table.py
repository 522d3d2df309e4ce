"""Paste a table of `make quality` or `ocp-mamba variants` into docs/results.md, or another page.

Usage: python scripts/paste_table.py quality outputs/quality/quality.md
       python scripts/paste_table.py variants outputs/variants/variants.md
       python scripts/paste_table.py variants outputs/relations/variants.md docs/sweeps.md
       python scripts/paste_table.py transfer outputs/transfer/transfer.md
       python scripts/paste_table.py wn18rr outputs/wn18rr/wn18rr_test.md

Their numbers reach the pages by this script alone. What stands between the markers is replaced;
nothing else is touched.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = "docs/results.md"
FIRST_CELL = {
    "quality": "| predictor",
    "transfer": "| chains",
    "variants": "| variant",
    "wn18rr": "| test, masked",
}
"""How the table of each command begins, by the command's name."""


def markers(name: str) -> tuple[str, str]:
    """Return what stands in a page before and after the table of a command."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def pasted(name: str, text: str, table: str, page: str = RESULTS) -> str:
    """Return a page's text with the table between the command's markers.

    Raises:
        SystemExit: a marker is missing, or the table is none of that command.
    """
    begin, end = markers(name)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise SystemExit(f"{page} needs {begin} and {end}, each once")
    if not table.startswith(FIRST_CELL[name]) or not any(
        word in table for word in ("families", "queries")
    ):
        raise SystemExit(f"this is not the {name}.md that `ocp-mamba {name}` writes")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{table.strip()}\n{end}{after}"


def main() -> None:
    """Replace the part of the page between the markers."""
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in FIRST_CELL:
        raise SystemExit(__doc__)
    name, file, page = (*sys.argv[1:], RESULTS)[:3]
    table = Path(file).read_text(encoding="utf-8")
    text = (ROOT / page).read_text(encoding="utf-8")
    (ROOT / page).write_text(pasted(name, text, table, page), encoding="utf-8")


if __name__ == "__main__":
    main()
