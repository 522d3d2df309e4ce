"""The campaigns of outages in their short forms, and how a peer's training is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocp_mamba.tracking.run import TrackedRun
from soak import outage, peers


@pytest.mark.slow
@pytest.mark.parametrize("campaign", [outage, peers])
def test_nothing_is_lost(campaign: object, store: str) -> None:
    results = campaign.run(True, print)
    assert {r.outcome for r in results} <= {"survived", "refused"}, results
    assert len(results) >= 3
    assert TrackedRun.on_epoch.__module__ == "ocp_mamba.tracking.run", "it is as it was before"


@pytest.mark.parametrize(
    ("steps", "status", "ended", "fault"),
    [
        ([1, 2, 3, 4, 5, 6], "FINISHED", True, None),
        ([8, 16, 24, 32, 40, 48], "FINISHED", True, None),
        ([1, 2, 3, 5, 6], "FINISHED", True, "1 of 6 epochs missing"),
        ([1, 2, 3, 3, 4, 5, 6], "FINISHED", True, "1 points twice"),
        ([1, 2, 3, 4, 5, 6], "RUNNING", True, "left RUNNING"),
        ([], "no run", True, "6 of 6 epochs missing; no run"),
        ([1, 2, 3, 4, 5, 6], "FINISHED", False, "killed, because it had not ended"),
    ],
)
def test_a_training_is_judged(
    steps: list[int], status: str, ended: bool, fault: str | None
) -> None:
    seen = peers.Seen(steps, status, 1.5, 2.5, ended)
    result = peers._judged("case", seen, killed=False)
    assert result.outcome == ("lost" if fault else "survived")
    assert result.detail.startswith(fault or "status FINISHED; logging took 1.5 s of the loop")


def test_what_is_not_installed_is_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NoServer:
        url = "http://127.0.0.1:9"

        def start(self) -> None: ...

        def kill(self) -> None: ...

    monkeypatch.setattr(peers, "PEERS", {"other": ("no_such_package",)})
    monkeypatch.setattr(peers, "tracking_server", lambda folder: NoServer())
    results = peers.run(False, print)
    assert len(results) == 5
    assert {(r.outcome, r.detail) for r in results} == {
        ("not-run", "not installed: no_such_package")
    }
