"""The tracking store: which one is used, how it is made, how long to wait for it, and its links."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import mlflow
import requests
from filelock import FileLock
from mlflow.entities import LifecycleStage
from mlflow.exceptions import MlflowException
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from ocp_mamba.errors import TrackingError, first_line
from ocp_mamba.redact import redact, remember
from ocp_mamba.tracking.charts import VIEW

STORE_VARIABLE = "MLFLOW_TRACKING_URI"
UI_PORT = 5000
MIGRATION_LOCK_KEY = 0x0C9_57A7

STORE_FAILURES: tuple[type[Exception], ...] = (
    MlflowException,
    requests.RequestException,
    SQLAlchemyError,
    OSError,
    json.JSONDecodeError,
)
"""The errors that MLflow raises when a tracking store is down, full or out of reach."""

REFUSALS = {
    "INVALID_PARAMETER_VALUE",
    "PERMISSION_DENIED",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
}
"""Codes of MLflow's errors that concern one operation, not the whole store."""

RACES = re.compile(
    r"UNIQUE constraint|duplicate key|already exists|database is locked|IntegrityError", re.I
)
RACE_TRIES, RACE_SECONDS = 8, 0.05

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""With MLflow's own settings each call to a server that is down blocks for four minutes, and the
links that MLflow prints open its GenAI pages."""

T = TypeVar("T")


def use_store(uri: str | None = None) -> str:
    """Choose the tracking store for this process, make its database, and return its URI.

    It is the URI given, else MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db`` in the working
    folder (MLflow alone would choose a folder ``mlruns`` where one with runs exists). Also sets
    those `SETTINGS` in the environment that the user has not set.

    Raises:
        TrackingError: the database cannot be made or opened.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    uri = uri or os.environ.get(STORE_VARIABLE) or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    remember(uri)
    mlflow.set_tracking_uri(uri)
    try:
        _make_tables(uri)
    except STORE_FAILURES as error:
        raise TrackingError(
            f"tracking store {redact(uri)}: {first_line(error)}. Start the database, or set "
            f"{STORE_VARIABLE} to another store"
        ) from error
    return uri


def is_refusal(error: Exception) -> bool:
    """Whether an error concerns one operation only, so that others may well be taken."""
    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, FileNotFoundError) or not isinstance(error, STORE_FAILURES)


def retried(action: Callable[[], T]) -> T:
    """Do what several processes may do at once, again where another one was first.

    The database then answers that a row exists already, although each of them looked before.
    """
    for left in reversed(range(RACE_TRIES)):
        try:
            return action()
        except (MlflowException, SQLAlchemyError) as error:
            if not left or not RACES.search(str(error)):
                raise
            time.sleep(RACE_SECONDS * random.uniform(1, 2 ** (RACE_TRIES - left)))
    raise AssertionError("unreachable")


def open_experiment(name: str) -> str:
    """Return the id of the experiment of this name, made where it does not exist.

    `mlflow.set_experiment` would also change the environment, which other threads may be reading.

    Raises:
        MlflowException: the store does not answer, or the experiment was deleted.
    """
    client = mlflow.MlflowClient()

    def find_or_make() -> str:
        found = client.get_experiment_by_name(name)
        if found is None:
            made: str = client.create_experiment(name)
            return made
        if found.lifecycle_stage == LifecycleStage.DELETED:
            raise MlflowException.invalid_parameter_value(
                f"experiment {name!r} was deleted; restore it (mlflow experiments restore "
                f"-x {found.experiment_id}), or choose another name"
            )
        identifier: str = found.experiment_id
        return identifier

    return retried(find_or_make)


def _make_tables(uri: str) -> None:
    """Make or migrate the tables of a store that is a database; a server does so by itself.

    One process at a time: MLflow's migrations fail where two of them make the same tables.
    """
    if not uri.startswith(("sqlite", "postgresql", "mysql", "mssql")):
        return
    with _migration_lock(uri):
        client = mlflow.MlflowClient(uri)
        retried(lambda: client.search_experiments(max_results=1))
        retried(lambda: client.search_registered_models(max_results=1))


@contextmanager
def _migration_lock(uri: str) -> Iterator[None]:
    """Hold a lock that every process has that uses this database."""
    try:
        url = make_url(uri)
    except (ArgumentError, ValueError) as error:
        raise TrackingError(f"tracking store {redact(uri)}: no address of a database") from error
    backend = url.get_backend_name()
    engine = create_engine(url, poolclass=NullPool)
    path = Path(url.database).absolute() if backend == "sqlite" and url.database else None
    lock = FileLock(path.with_name(f"{path.name}.lock")) if path else nullcontext()
    # MLflow tries a database that does not answer for 100 s; this connection fails at once
    with lock, engine.begin() as connection:
        if backend == "postgresql":
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK_KEY})")
        yield


def unusable(uri: str, error: Exception) -> TrackingError:
    """Return what is raised where a tracking store fails with one of `STORE_FAILURES`."""
    return TrackingError(
        f"tracking store {redact(uri)}: {first_line(error)}. Start the server, or set "
        f"{STORE_VARIABLE} to another store"
    )


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn the failures of a tracking store within the block into one line for a person.

    Raises:
        TrackingError: the store cannot be used.
    """
    try:
        yield
    except STORE_FAILURES as error:
        raise unusable(uri, error) from error


def require_store() -> None:
    """Ask the store in use for an answer, before any work is done.

    Raises:
        TrackingError: it does not answer.
    """
    uri = use_store()
    with store_errors(uri):
        mlflow.search_experiments(max_results=1)


def ui_link(
    store: str, experiment_id: str, run_id: str | None = None, *, port: int = UI_PORT
) -> tuple[str, str | None]:
    """Return the link to the epochs' chart, and the command that serves it (None for a server).

    A fresh browser opens MLflow 3.17 in its GenAI mode; the link's ``workflowType`` chooses model
    training, and ``viewStateShareKey`` the saved view of `tracking.charts`. With ``run_id`` the
    link is that run's page. Neither has a password.
    """
    store = redact(store)
    command = f"mlflow ui --backend-store-uri {shlex.quote(store)} --port {port}"
    served = store.startswith(("http://", "https://"))
    base = re.sub("//[^/]*@", "//", store).rstrip("/") if served else f"http://127.0.0.1:{port}"
    page = f"runs/{run_id}?" if run_id else "runs?compareRunsMode=CHART&"
    link = f"{base}/#/experiments/{experiment_id}/{page}workflowType=machine_learning"
    link += "" if run_id else f"&viewStateShareKey={VIEW}"
    return link, None if served else command


def experiment_id(name: str) -> str | None:
    """Return an experiment's id in the store in use, or None if there is no such experiment."""
    found = mlflow.get_experiment_by_name(name)
    return found.experiment_id if found else None
