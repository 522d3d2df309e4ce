"""Shared fixtures: a small dataset and model, a tracking store each test, servers."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; read before torch's first import
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from data_maker import TINY, make_dataset
from postgres import NOT_FOUND, Postgres, programs
from servers import Server, tracking_server

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return make_dataset(n_chains=60, n_concepts=40, seed=0)


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    return ModelConfig(**TINY)


@pytest.fixture(scope="session")
def quick() -> Iterator[None]:
    """From the first use of a store on, plots are one pixel, and few predictions are timed.

    Tests that look at plots use `drawn`. MLflow reads its newest schema once; it would load all its
    migrations for each store's file.
    """
    from drawing import one_pixel
    from mlflow.store.db import utils

    with one_pixel(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("ocp_mamba.evaluation.latency.RUNS", 20)
        newest = functools.cache(utils._get_latest_schema_revision)
        patch.setattr(utils, "_get_latest_schema_revision", newest)
        yield


@pytest.fixture(scope="module")
def drawn(quick: None) -> Iterator[None]:
    """Plots are drawn."""
    from drawing import drawing

    with drawing():
        yield


@pytest.fixture(scope="session")
def empty_database(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sqlite file with MLflow's tables; creating them takes seconds, copying the file none."""
    import mlflow

    if ready := os.environ.get("EMPTY_MLFLOW_DB"):  # scripts/mutants.py makes it once for all
        return Path(ready)
    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path) -> Iterator[str]:
    """An empty sqlite tracking store; the working folder is ``tmp_path``."""
    import mlflow

    from ocp_mamba.tracking.store import SETTINGS

    for name in SETTINGS:  # what `use_store` sets is undone after the test
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    monkeypatch.setattr(mlflow.tracking.fluent, "_active_experiment_id", None)
    yield uri
    while mlflow.active_run():
        mlflow.end_run("KILLED")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A tracking server over HTTP, shared by the session: do not kill it."""
    running = tracking_server(tmp_path_factory.mktemp("server"))
    running.start()
    yield running
    running.kill()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, shared by the session: make a database of your own on it."""
    found = programs()
    if found is None:
        pytest.skip(NOT_FOUND)
    with Postgres(found) as running:
        yield running
