"""Choosing and making a store, also by ten processes at once; and who writes the environment."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import mlflow
import pytest
from filelock import FileLock
from postgres import Postgres
from sqlalchemy.exc import IntegrityError
from tracked import train_tracked

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import TrackingError
from ocp_mamba.tracking import session
from ocp_mamba.tracking import store as module
from ocp_mamba.tracking.store import is_refusal, open_experiment, retried, use_store

STARTING = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from data_maker import make_dataset
from ocp_mamba.tracking import session
Path(sys.argv[2]).touch()
while not Path(sys.argv[2]).with_name("go").exists():
    pass
with session.track(make_dataset(), "d.npz", output_dir="out", system_metrics=False,
                   experiment="together", store=sys.argv[1]) as run:
    run.log_results({"n": 1.0})
print(run.run_id)
"""
HELPERS = Path(__file__).parents[1] / "helpers"


def start_at_once(address: str, folder: Path, n: int) -> list[str]:
    """The output of processes that each open a run in the same store at the same time."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STARTING, address, str(folder / f"ready-{i}"), str(HELPERS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        )
        for i in range(n)
    ]
    while len(list(folder.glob("ready-*"))) < n:
        assert all(p.poll() is None for p in processes)
    (folder / "go").touch()
    outputs = [p.communicate()[0] for p in processes]
    assert [p.returncode for p in processes] == [0] * n, "\n".join(outputs)
    return [output.splitlines()[-1] for output in outputs]


def require_runs(address: str, ids: list[str]) -> None:
    mlflow.set_tracking_uri(address)
    runs = mlflow.search_runs(experiment_names=["together"], output_format="list")
    assert {run.info.run_id for run in runs} == set(ids)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert all(run.data.metrics == {"n": 1.0} for run in runs)
    digests = {i.dataset.digest for run in runs for i in run.inputs.dataset_inputs}
    assert len(digests) == 1


@pytest.mark.slow
def test_runs_that_start_at_once_on_a_new_store(store: str, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'new.db'}"
    require_runs(address, start_at_once(address, tmp_path, 10))


def test_one_process_at_a_time_makes_the_tables(store: str, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path / 'new.db'}"
    making = threading.Thread(target=use_store, args=(address,))
    with FileLock(tmp_path / "new.db.lock"):
        making.start()
        making.join(0.5)
        assert making.is_alive()
        assert not (tmp_path / "new.db").exists()
    making.join()
    assert mlflow.MlflowClient(address).search_experiments()[0].name == "Default"


@pytest.mark.slow
def test_runs_that_start_at_once_on_a_new_postgresql_store(
    store: str, tmp_path: Path, postgres: Postgres
) -> None:
    address = postgres.create_database("together")
    require_runs(address, start_at_once(address, tmp_path, 6))


def test_a_race_is_tried_again_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RACE_SECONDS", 0.0)
    left = [
        IntegrityError("INSERT", {}, Exception("UNIQUE constraint failed: datasets.name")),
        mlflow.MlflowException("(sqlite3.OperationalError) database is locked"),
    ]

    def racing() -> str:
        if left:
            raise left.pop()
        return "done"

    assert retried(racing) == "done"

    def other() -> None:
        tries.append(1)
        raise mlflow.MlflowException("no such run")

    tries: list[int] = []
    with pytest.raises(mlflow.MlflowException, match="no such run"):
        retried(other)
    assert len(tries) == 1

    def always() -> None:
        tries.append(1)
        raise mlflow.MlflowException("duplicate key value")

    with pytest.raises(mlflow.MlflowException, match="duplicate key"):
        retried(always)
    assert len(tries) == 1 + module.RACE_TRIES


def test_an_experiment_that_another_process_makes_first(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RACE_SECONDS", 0.0)
    made = mlflow.create_experiment("taken")
    look = mlflow.MlflowClient.get_experiment_by_name
    looked: list[str] = []

    def too_early(self: mlflow.MlflowClient, name: str) -> object:
        looked.append(name)
        return None if len(looked) == 1 else look(self, name)

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", too_early)
    assert open_experiment("taken") == made
    assert len(looked) == 2


def test_a_deleted_experiment_is_an_error(store: str, dataset: Dataset) -> None:
    mlflow.delete_experiment(mlflow.create_experiment("gone"))
    with (
        pytest.raises(TrackingError, match="experiment 'gone' was deleted; restore it"),
        session.track(dataset, "d.npz", output_dir="out", experiment="gone"),
    ):
        pytest.fail("the run must not open")


def test_a_database_that_cannot_be_opened_is_an_error(store: str, tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(TrackingError, match=r"tracking store sqlite:///.*folder\.db: .*unable to"):
        use_store(f"sqlite:///{tmp_path / 'folder.db'}")
    with pytest.raises(TrackingError, match=r"postgresql://me:\*\*\*@127\.0\.0\.1:1/x: .*refused"):
        use_store("postgresql://me:hunter22@127.0.0.1:1/x")


def test_what_concerns_one_operation_only() -> None:
    refused = mlflow.MlflowException.invalid_parameter_value("bad name")
    assert is_refusal(refused)
    assert is_refusal(FileNotFoundError("plot.png"))
    assert is_refusal(KeyError("run_id"))
    assert not is_refusal(mlflow.MlflowException("502"))
    assert not is_refusal(ConnectionError("refused"))


_watched: list[str] = []
_watching = threading.Event()


def _watch(event: str, args: tuple[object, ...]) -> None:
    if event in ("os.putenv", "os.unsetenv") and _watching.is_set():
        names = {thread.name for thread in threading.enumerate()}
        if {"tracking", "SystemMetricsMonitor"} & names:
            _watched.append(f"{event} {args[0]!r} beside {sorted(names)}")


def test_no_thread_runs_while_the_environment_is_written(
    store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    os.environ["MLFLOW_RUN_ID"] = mlflow.MlflowClient().create_run("0").info.run_id
    sys.addaudithook(_watch)  # cannot be removed, so it is switched off below
    _watching.set()
    try:
        for _ in range(2):  # the second one is not adopted
            with session.track(dataset, "d.npz", output_dir="out") as run:
                result = train_tracked(run, dataset, tiny_config, tmp_path / "m.pt", epochs=2)
                run.log_models(tmp_path / "m.pt", result.best_epoch)
                run.register(result.best_epoch)
            assert mlflow.get_run(run.run_id).info.status == "FINISHED"
    finally:
        _watching.clear()
    assert _watched == []
