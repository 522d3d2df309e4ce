"""Several workers on one study, one of them killed: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command import run
from postgres import Postgres
from sweeps import Files, WorkerProcess, kill_in_a_trial, require_exactly, study_of

from ocp_mamba.sweep.attempts import first_number, history

GRACE = 6


def sweep_with_a_killed_worker(
    tmp_path: Path, store: str, address: str, *, workers: int, n_trials: int
) -> list[WorkerProcess]:
    """Start all workers at once, kill the first one in a trial, and wait for the others."""
    files = Files.make(tmp_path)
    words = files.new("--n-trials", n_trials, "--grace", GRACE, epochs=4)
    started = [
        WorkerProcess(words, tmp_path / f"worker-{i}.log", MLFLOW_TRACKING_URI=store,
                      OCP_MAMBA_SWEEP_STORAGE=address)
        for i in range(workers)
    ]  # fmt: skip
    try:
        killed = kill_in_a_trial(started[0], address)
        for worker in started[1:]:
            worker.wait()
    finally:
        for worker in started:
            worker.process.kill()
    children = require_exactly(n_trials, address)
    retried = [t for t in study_of(address).get_trials() if history(t)]
    assert killed.number in {first_number(t) for t in retried}
    (adopted,) = [c for c in children if c.info.run_id == killed.user_attrs["run_id"]]
    assert int(adopted.data.tags["sweep.attempts"]) >= 2
    return started


@pytest.mark.slow
def test_six_trials_two_workers_one_killed(postgres: Postgres, store: str, tmp_path: Path) -> None:
    address = postgres.create_database("six_trials")
    sweep_with_a_killed_worker(tmp_path, store, address, workers=2, n_trials=6)


@pytest.mark.slow
def test_run_again_after_a_kill_goes_on_in_the_journal(store: str, tmp_path: Path) -> None:
    address = str(tmp_path / "sweeps.journal")
    words = Files.make(tmp_path).new("--n-trials", 3, "--grace", 2, epochs=3)
    worker = WorkerProcess(words, tmp_path / "worker.log", MLFLOW_TRACKING_URI=store)
    killed = kill_in_a_trial(worker, address)
    said = run(*words)
    children = require_exactly(3, address)
    (adopted,) = [c for c in children if c.info.run_id == killed.user_attrs["run_id"]]
    assert adopted.data.tags["sweep.attempts"] == "2"
    assert adopted.data.tags["process.pid"] == str(os.getpid())
    assert "3 of 3" in said
    assert "nothing" in run(*words)


@pytest.mark.slow
def test_twenty_trials_three_workers_one_killed(
    postgres: Postgres, store: str, tmp_path: Path
) -> None:
    address = postgres.create_database("twenty_trials")
    sweep_with_a_killed_worker(tmp_path, store, address, workers=3, n_trials=20)
