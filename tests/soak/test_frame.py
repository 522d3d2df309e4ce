"""What is counted, what the page says, and when the exit code is 1."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from benchmarks import frame
from soak import __main__ as soak
from soak import page
from soak.result import NotRunError, Result


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A page and results of this test alone, and no machine to look at."""
    marked = "".join(
        f"<!-- {name}: begin -->\n<!-- {name}: end -->\n"
        for name in (page.SUMMARY, *soak.CAMPAIGNS)
    )
    (tmp_path / "reliability.md").write_text(marked)
    monkeypatch.setattr(page, "PAGE", tmp_path / "reliability.md")
    monkeypatch.setattr(page, "RESULTS", tmp_path / "results")
    machine = {"processor": "A1", "cores": 2, "python": "3.11.7", "torch": "2.12", "commit": "abc"}
    monkeypatch.setattr(frame, "machine", lambda: machine)
    monkeypatch.setattr(soak, "_exists", lambda name: f"soak.{name}" in sys.modules)


def campaign(monkeypatch, name, *outcomes, error=None):
    """Put a campaign of this name in place that gives these results, or raises."""

    def run(quick, log):
        if error is not None:
            raise error
        return [Result(name, case, outcome, "seen: x") for case, outcome in outcomes]

    module = ModuleType(f"soak.{name}")
    module.run = run
    monkeypatch.setitem(sys.modules, f"soak.{name}", module)


def test_what_was_tried_is_counted_and_written(monkeypatch, capsys):
    campaign(monkeypatch, "kill", ("epoch", "survived"), ("epoch", "survived"), ("end", "refused"))
    assert soak.main(["kill"]) == 0
    assert "kill         tried 3, survived 2, refused 1, lost 0" in capsys.readouterr().out
    text = page.PAGE.read_text()
    assert "| epoch  | 2       | 2          | 0         | 0      |" in text
    assert "A1, 2 cores" in text
    assert "| outage      | not-run |" in text


@pytest.mark.parametrize("outcome", ["survived", "lost"])
def test_the_exit_code_is_1_when_something_is_lost(outcome, monkeypatch):
    campaign(monkeypatch, "kill", ("epoch", "survived"), ("epoch", outcome))
    assert soak.main(["kill"]) == (outcome == "lost")
    assert ("- lost: epoch: seen: x" in page.PAGE.read_text()) == (outcome == "lost")


def test_what_others_lose_is_shown_and_is_no_failure(monkeypatch):
    campaign(monkeypatch, "peers", ("MLflow autolog: store away", "lost"))
    assert soak.main(["peers"]) == 0
    assert "- lost: MLflow autolog" in page.PAGE.read_text()
    campaign(monkeypatch, "peers", ("ocp_mamba: store away", "lost"))
    assert soak.main(["peers"]) == 1


def test_a_quick_run_leaves_the_page(monkeypatch):
    before = page.PAGE.read_text()
    campaign(monkeypatch, "kill", ("epoch", "survived"))
    assert soak.main(["--quick", "kill"]) == 0
    assert page.PAGE.read_text() == before
    assert not page.RESULTS.exists()


def test_the_page_keeps_what_did_not_run(monkeypatch):
    campaign(monkeypatch, "kill", ("epoch", "survived"))
    campaign(monkeypatch, "fuzz", ("npz", "refused"))
    soak.main(["kill"])
    soak.main(["fuzz"])
    text = page.PAGE.read_text()
    assert "| epoch" in text
    assert "| npz" in text


def test_what_is_missing_is_not_run_and_says_why(monkeypatch, capsys):
    campaign(monkeypatch, "peers", error=NotRunError("lightning is not installed"))
    campaign(monkeypatch, "kill", ("with a peer", "not-run"), ("epoch", "survived"))
    monkeypatch.delitem(sys.modules, "soak.outage", raising=False)
    assert soak.main(["peers", "outage", "kill"]) == 0
    shown = capsys.readouterr().out
    assert "peers        not-run: lightning is not installed" in shown
    assert "outage       not-run: there is no soak/outage.py" in shown
    assert "tried 1, survived 1, refused 0, lost 0, not-run 1" in shown


def test_a_campaign_that_breaks_is_a_failure_and_the_others_run(monkeypatch, capsys):
    campaign(monkeypatch, "kill", error=ZeroDivisionError("oh"))
    campaign(monkeypatch, "fuzz", ("npz", "refused"))
    assert soak.main(["kill", "fuzz"]) == 1
    shown = capsys.readouterr().out
    assert "kill         ended with an error: ZeroDivisionError: oh" in shown
    assert "fuzz         tried 1" in shown


def test_a_name_that_is_no_campaign_is_refused():
    with pytest.raises(SystemExit):
        soak.main(["kil"])
