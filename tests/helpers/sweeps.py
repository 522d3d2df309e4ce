"""Tiny sweeps, in this process or as worker processes, and what MLflow has of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
import optuna
from data_maker import make_dataset
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState

from ocp_mamba.sweep.storage import open_storage

SPACE = """
train:
  lr: {type: float, low: 1e-4, high: 1e-2, log: true}
  batch_size: {type: categorical, choices: [8, 16, 32]}
model:
  dropout: {type: float, low: 0.0, high: 0.3}
"""
CONFIG = """
[model]
d_model = 32
n_layers = 1
members = 1
headdim = 16
[train]
precision = "float32"
"""
PATIENCE_SECONDS = 240


@dataclass(frozen=True)
class Files:
    """A dataset, a search space and a config in a folder."""

    folder: Path

    @staticmethod
    def make(folder: Path, n_chains: int = 60) -> Files:
        make_dataset(n_chains=n_chains, n_concepts=40, seed=4).save(folder / "small.npz")
        (folder / "space.yaml").write_text(SPACE)
        (folder / "tiny.toml").write_text(CONFIG)
        return Files(folder)

    def new(self, *more: object, epochs: int = 2) -> list[str]:
        """Words of a command that starts a study, or continues it."""
        words = ["sweep", "--data", self.folder / "small.npz", "--space",
                 self.folder / "space.yaml", "--config", self.folder / "tiny.toml",
                 "--max-epochs", epochs, "--threads", 1, "--quiet", *more]  # fmt: skip
        return [str(w) for w in words]


class WorkerProcess:
    """`ocp-mamba sweep` in a process of its own."""

    def __init__(self, words: list[str], log: Path, **environment: str) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ocp_mamba.cli", *words],
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
                cwd=log.parent,
            )

    def wait(self) -> str:
        self.process.wait(PATIENCE_SECONDS)
        said = self.log.read_text()
        assert self.process.returncode == 0, said
        return said


def runs_of(kind: str) -> list[Run]:
    return mlflow.search_runs(
        search_all_experiments=True, filter_string=f"tags.kind = '{kind}'", output_format="list"
    )


def study_of(address: str, name: str = "small") -> optuna.Study:
    storage = open_storage(address, tracking_uri="http://elsewhere", grace=60)
    return optuna.load_study(study_name=name, storage=storage.optuna)


def kill_in_a_trial(worker: WorkerProcess, address: str) -> FrozenTrial:
    """Kill -9 a worker while it has a trial whose first epoch is logged; returns the trial."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    pid = worker.process.pid
    while time.monotonic() < deadline:
        assert worker.process.poll() is None, worker.log.read_text()
        mine = [r for r in runs_of("trial") if r.info.status == "RUNNING"
                and r.data.tags["process.pid"] == str(pid)
                and "val_next_vec_cosine" in r.data.metrics]  # fmt: skip
        if not mine:
            time.sleep(0.02)
            continue
        os.kill(pid, signal.SIGSTOP)
        held = [t for t in study_of(address).get_trials() if t.state == TrialState.RUNNING
                and t.user_attrs.get("run_id") == mine[0].info.run_id]  # fmt: skip
        if held:
            os.kill(pid, signal.SIGKILL)
            worker.process.wait()
            return held[0]
        os.kill(pid, signal.SIGCONT)
    raise AssertionError(worker.log.read_text())


def require_exactly(n_trials: int, address: str, study: str = "small") -> list[Run]:
    """One parent, a child for each of so many finished or pruned trials, nothing twice."""
    (parent,) = runs_of("sweep")
    assert parent.info.status == "FINISHED"
    trials = study_of(address, study).get_trials()
    done = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(done) == n_trials
    assert not [t for t in trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    children = runs_of("trial")
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert len(children) == n_trials
    assert {c.info.run_id for c in children} == {t.user_attrs["run_id"] for t in done}
    assert len({c.data.tags["sweep.trial"] for c in children}) == n_trials
    assert len({tuple(sorted(t.params.items())) for t in done}) == n_trials, "a trial ran twice"
    ended = {(c.info.status, c.data.tags["sweep.state"]) for c in children}
    assert ended <= {("FINISHED", "finished"), ("KILLED", "pruned")}
    finished = sum(t.state == TrialState.COMPLETE for t in done)
    assert sum(c.info.status == "FINISHED" for c in children) == finished
    for child in children:
        history = mlflow.MlflowClient().get_metric_history(child.info.run_id, "val_next_vec_cosine")
        steps = [m.step for m in history]
        assert steps == list(range(1, len(steps) + 1)), "an epoch was logged twice or not at all"
        assert steps
    return children
