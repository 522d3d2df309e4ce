"""The tracking store: which one is used, how long to wait for it, and the link to its UI."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import mlflow
import requests
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from ocp_mamba.errors import TrackingError, first_line
from ocp_mamba.tracking.charts import VIEW

STORE_VARIABLE = "MLFLOW_TRACKING_URI"
UI_PORT = 5000

STORE_FAILURES: tuple[type[Exception], ...] = (
    MlflowException,
    requests.RequestException,
    SQLAlchemyError,
    OSError,
)
"""The errors that MLflow raises when a tracking store is down, full or out of reach."""

SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
"""With MLflow's own settings each call to a server that is down blocks for four minutes, and the
links that MLflow prints open its GenAI pages."""


def use_store(uri: str | None = None) -> str:
    """Choose the tracking store for this process and return its URI.

    It is the URI given, else MLFLOW_TRACKING_URI, else ``sqlite:///mlflow.db`` in the working
    folder (MLflow alone would choose a folder ``mlruns`` where one with runs exists). Also sets
    those `SETTINGS` in the environment that the user has not set.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    uri = uri or os.environ.get(STORE_VARIABLE) or f"sqlite:///{Path.cwd() / 'mlflow.db'}"
    mlflow.set_tracking_uri(uri)
    return uri


def require_store() -> None:
    """Ask the store in use for an answer, before any work is done.

    Raises:
        TrackingError: it does not answer.
    """
    uri = use_store()
    try:
        mlflow.search_experiments(max_results=1)
    except STORE_FAILURES as error:
        raise TrackingError(
            f"tracking store {uri}: {first_line(error)}. Start the server, or set "
            f"{STORE_VARIABLE} to another store"
        ) from error


def ui_link(
    store: str, experiment_id: str, run_id: str | None = None, *, port: int = UI_PORT
) -> tuple[str, str | None]:
    """Return the link to the epochs' chart, and the command that serves it (None for a server).

    A fresh browser opens MLflow 3.17 in its GenAI mode; the link's ``workflowType`` chooses model
    training, and ``viewStateShareKey`` the saved view of `tracking.charts`. With ``run_id`` the
    link is that run's page.
    """
    command = f"mlflow ui --backend-store-uri {shlex.quote(store)} --port {port}"
    served = store.startswith(("http://", "https://"))
    base = store.rstrip("/") if served else f"http://127.0.0.1:{port}"
    page = f"runs/{run_id}?" if run_id else "runs?compareRunsMode=CHART&"
    link = f"{base}/#/experiments/{experiment_id}/{page}workflowType=machine_learning"
    link += "" if run_id else f"&viewStateShareKey={VIEW}"
    return link, None if served else command


def experiment_id(name: str) -> str | None:
    """Return an experiment's id in the store in use, or None if there is no such experiment."""
    found = mlflow.get_experiment_by_name(name)
    return found.experiment_id if found else None
