"""Paste the table that `ocp-mamba variants` wrote into README.md.

Usage: python scripts/paste_variants.py outputs/variants/variants.md

Figures reach the README by this script alone. What stands between the markers is replaced; nothing
else is touched.
"""

from __future__ import annotations

import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- variants: begin -->", "<!-- variants: end -->"


def pasted(readme: str, table: str) -> str:
    """Return the README with the table between the markers.

    Raises:
        SystemExit: a marker is missing, or the table is none of `ocp-mamba variants`.
    """
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md needs {BEGIN} and {END}, each once")
    if not table.startswith("| variant") or "families" not in table:
        raise SystemExit("this is not the variants.md that `ocp-mamba variants` writes")
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table.strip()}\n{END}{after}"


def main() -> None:
    """Replace the part of the README between the markers."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    table = Path(sys.argv[1]).read_text(encoding="utf-8")
    README.write_text(pasted(README.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
