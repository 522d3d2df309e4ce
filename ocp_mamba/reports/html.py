"""A self-contained HTML page: one file, no script, nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ocp_mamba.reports.plots import as_png
from ocp_mamba.stats import Figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

STYLE = """
:root { --ink: #1c2430; --soft: #5d6878; --line: #e2e6ec; --wash: #f6f8fb; --blue: #1f4e9e;
  --good: #1d7a46; --bad: #b3261e; --open: #7a6a1f; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 15px/1.55 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 36px 0 10px; }
h3 { font-size: 15px; margin: 20px 0 6px; }
p { max-width: 76ch; margin: 8px 0; }
.lead { font-size: 16.5px; }
.soft, caption, figcaption { color: var(--soft); font-size: 13.5px; }
section, .box { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 22px; margin: 14px 0; }
section > h2:first-child { margin-top: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr));
  gap: 10px 22px; margin: 14px 0 0; }
.facts dt { color: var(--soft); font-size: 12.5px; }
.facts dd { margin: 0; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--line); border-left: 5px solid var(--soft); border-radius: 8px;
  padding: 10px 14px; background: #fff; }
.card b { display: block; font-size: 18px; }
.card small { display: block; color: var(--soft); font-size: 12.5px; line-height: 1.4; }
.card.good { border-left-color: var(--good); } .card.bad { border-left-color: var(--bad); }
.card.open { border-left-color: var(--open); }
.card.good, .card.bad, .card.open { color: var(--ink); }
.card.good b { color: var(--good); } .card.bad b { color: var(--bad); }
.card.open b { color: var(--open); }
.examples { table-layout: fixed; min-width: 760px; }
.examples th:nth-child(1) { width: 38%; } .examples th:nth-child(2) { width: 18%; }
.examples th:nth-child(4), .examples th:nth-child(5) { width: 70px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; padding-top: 8px; }
th, td { text-align: left; padding: 7px 10px 7px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-size: 12.5px; color: var(--soft); font-weight: 600; }
td small { display: block; color: var(--soft); font-size: 12px; white-space: nowrap; }
tr.ours td { background: #eef4fd; } tr.ours td:first-child { font-weight: 600; }
tr td:first-child, tr th:first-child { padding-left: 8px; }
tr td:first-child { overflow-wrap: anywhere; min-width: 150px; }
.best { font-weight: 700; }
.good { color: var(--good); } .bad { color: var(--bad); } .open { color: var(--open); }
.tag { display: inline-block; border-radius: 20px; padding: 1px 10px; font-size: 13px;
  border: 1px solid currentColor; white-space: nowrap; }
figure { margin: 8px 0; } img { max-width: 100%; height: auto; display: block; }
ol { margin: 0; padding-left: 20px; } .hit { font-weight: 700; color: var(--good); }
code { font-size: 13px; } summary { cursor: pointer; color: var(--blue); }
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""


def page(title: str, *sections: str) -> str:
    """Return a whole document; ``sections`` are HTML already."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> str:
    """Return a titled box, or nothing where it has no content; ``parts`` are HTML already."""
    body = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>" if body else ""


def text(words: str, kind: str = "") -> str:
    """Return a paragraph of plain text."""
    return f'<p class="{kind}">{escape(words)}</p>' if kind else f"<p>{escape(words)}</p>"


def facts(values: Mapping[str, str]) -> str:
    """Return names and values of plain text as a grid."""
    rows = "".join(
        f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in values.items()
    )
    return f'<dl class="facts">{rows}</dl>'


def image(figure: Drawing | None, alt: str, caption: str = "") -> str:
    """Return a drawing as an inlined PNG; nothing for None."""
    if figure is None:
        return ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="{as_png(figure)}" alt="{escape(alt)}">{below}</figure>'


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    caption: str = "",
    *,
    ours: int = -1,
    kind: str = "",
) -> str:
    """Return a table.

    Args:
        headers: plain text.
        rows: cells, HTML already.
        caption: plain text below.
        ours: number of the row to mark.
        kind: a class of the style sheet.
    """
    head = "".join(f"<th>{escape(h)}</th>" for h in headers)
    body = "\n".join(
        f'<tr class="ours">{_cells(row)}</tr>' if i == ours else f"<tr>{_cells(row)}</tr>"
        for i, row in enumerate(rows)
    )
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table class="{kind}">{below}<tr>{head}</tr>\n{body}</table></div>'


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{cell}</td>" for cell in row)


def figure_cell(figure: Figure | None, best: bool = False, signed: bool = False) -> str:
    """Return a figure as a cell: its value, and its interval below it."""
    if figure is None or figure.value is None:
        return '<span class="soft">not run</span>'
    form = "+.3f" if signed else ".3f"
    value = f"{figure.value:{form}}"
    interval = f"<small>{figure.interval(form)}</small>"
    return (f'<span class="best">{value}</span>' if best else value) + interval


def tag(verdict: str) -> str:
    """Return pass, fail or not-run as a small coloured label."""
    kind = {"pass": "good", "fail": "bad"}.get(verdict, "open")
    return f'<span class="tag {kind}">{escape(verdict)}</span>'
