"""Paste what a real `make run` printed: its telling lines into README.md, all into docs/results.md.

Usage: python scripts/paste_run.py LOG

LOG is the whole output of `make run`. Its numbers reach the pages by this script alone. What stands
between the markers is replaced; nothing else is touched.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS = ROOT / "README.md", ROOT / "docs" / "results.md"
BEGIN, END = "<!-- make run: begin -->", "<!-- make run: end -->"
FIRST, LAST = "Evaluating the baselines", "then look at"
NOISE = re.compile(
    r"^\d{4}/\d\d/\d\d |^Successfully registered|^Created version|^\s*(epoch \d+/\d+:\s*)?\d+%\|"
)

TELLING = re.compile(r"^Training \d|^\w+ +fail\b|^(report|registered|then look at) ")
"""Lines of the README beside those of the tables."""


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


def telling(text: str) -> str:
    """Return about a dozen lines of what `shown` gives, with "…" where lines were left out.

    They are the last epoch and the best one, the best baseline and the model, the gates that
    failed, and where to look.
    """
    lines = text.splitlines()
    kept = {i for i, line in enumerate(lines) if TELLING.search(line)}
    head = _last(lines, "epoch ")
    rows = _rows(lines, head)
    kept |= {head, head + 1, rows[-1], *(i for i in rows if "*" in lines[i].split()[0])}
    head = _last(lines, "predictor ")
    rows = _rows(lines, head)
    best = max(rows[:-1], key=lambda i: _first_number(lines[i]))
    kept |= {head, head + 1, best, rows[-1]}
    out: list[str] = []
    for i, line in enumerate(lines):
        if i in kept:
            out.append(line)
        elif out and out[-1] not in ("", "…"):
            out.append("…" if line else "")
    return "\n".join(out)


def _last(lines: list[str], start: str) -> int:
    """The last line that begins a table by this word."""
    return max(i for i, line in enumerate(lines) if line.startswith(start))


def _rows(lines: list[str], head: int) -> list[int]:
    """The lines of a table under its head and its rule, up to an empty line or a footnote."""
    end = head + 2
    while end < len(lines) and re.search(r"\s{2,}-?\d", lines[end]):
        end += 1
    return list(range(head + 2, end))


def _first_number(row: str) -> float:
    found = re.search(r"\s{2,}(-?\d+\.\d+)", row)
    return float(found[1]) if found else float("-inf")


def _pasted(page: Path, text: str) -> None:
    """Replace the part of a page between the markers."""
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    page.write_text(f"{before}{BEGIN}\n```text\n{text}\n```\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Paste the telling lines into the README, and all into the page of results."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    text = shown(Path(sys.argv[1]).read_text(encoding="utf-8"))
    _pasted(README, telling(text))
    _pasted(RESULTS, text)


if __name__ == "__main__":
    main()
