from evaluated import HISTORY

from ocp_mamba.reports.html import render
from ocp_mamba.reports.tables import BEST, GITHUB, Cell, Table, epoch_table, result_table
from ocp_mamba.stats import Figure


def test_epoch_table_marks_the_best() -> None:
    lines = epoch_table(HISTORY).splitlines()
    assert lines[2].split() == ["1", "0.3100", "0.0500", "-", "1.1000", "2.0"]
    assert lines[3].split() == ["2*", "0.5200", "-", "+0.2100", "1.1000", "2.0"]
    assert lines[4].split()[0] == "3"


def test_result_table_shows_intervals_gates_and_what_was_not_run() -> None:
    numbers = {
        "next_vec_cosine": 0.7,
        "interval/next_vec_cosine_low": 0.69,
        "interval/next_vec_cosine_high": 0.71,
    }
    text = result_table(numbers, {"train_time": "fail"}, ["next_vec_cosine", "echo"])
    rows = [line.split() for line in text.splitlines()]
    assert ["next_vec_cosine", "0.7000", "0.6900", "to", "0.7100"] in rows
    assert ["echo", "not-run"] in rows
    assert ["train_time", "fail"] in rows


def test_one_table_serves_terminal_markdown_and_page() -> None:
    figure = Figure(0.5, 0.4, 0.6, 9)
    table = Table(
        ["run", "value"],
        [[Cell("a<b", note="id"), Cell(figure, "+.2f", BEST)], ["b", None], ["c"]],
        ours=0,
    )
    assert "+0.50 [+0.40, +0.60]" in table.to_text()
    assert "**" not in table.to_text()
    assert "| **+0.50 [+0.40, +0.60]** |" in table.to_text(GITHUB)
    assert "not run" in table.to_text()
    page = render("ranking.html", title="t", facts={}, table=table, note="", drawing="", label="")
    assert '<tr class="ours"><td>a&lt;b<small>id</small></td>' in page
    assert '<span class="best">+0.50</span><small>[+0.40, +0.60]</small>' in page
