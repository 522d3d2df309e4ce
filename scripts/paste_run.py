"""Paste what a real `make run` printed into README.md.

Usage: python scripts/paste_run.py LOG

LOG is the whole output of `make run`. Figures reach the README by this script alone. What stands
between the markers is replaced; nothing else is touched.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- make run: begin -->", "<!-- make run: end -->"
FIRST, LAST = "Evaluating the baselines", "then look at"
NOISE = re.compile(
    r"^\d{4}/\d\d/\d\d |^Successfully registered|^Created version|^\s*(epoch \d+/\d+:\s*)?\d+%\|"
)


def shown(log: str) -> str:
    """Cut a log to the part that a person reads, without progress bars and library lines.

    Raises:
        SystemExit: the log is not that of a run that ended well.
    """
    lines = [line.rsplit("\r", 1)[-1] for line in log.split("\n")]
    starts = [i for i, line in enumerate(lines) if line.startswith(FIRST)]
    ends = [i for i, line in enumerate(lines) if line.startswith(LAST)]
    if not starts or not ends:
        raise SystemExit(f"no {FIRST!r} … {LAST!r}: this is not the output of a whole `make run`")
    kept = [line.rstrip() for line in lines[starts[0] : ends[-1] + 1] if not NOISE.search(line)]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(kept))
    return re.sub(
        r"sqlite:///\S*/mlflow\.db",
        "sqlite:///mlflow.db",
        re.sub(r"/\S*/outputs/", "outputs/", text),
    )


def main() -> None:
    """Replace the part of the README between the markers."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    readme = README.read_text(encoding="utf-8")
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    text = shown(Path(sys.argv[1]).read_text(encoding="utf-8"))
    README.write_text(f"{before}{BEGIN}\n```text\n{text}\n```\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
