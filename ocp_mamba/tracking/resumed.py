"""The run of an interrupted training: found again in the store, reopened, and what it holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import LifecycleStage, Run, RunTag, ViewType
from mlflow.exceptions import MlflowException

from ocp_mamba.errors import ResumeError
from ocp_mamba.redact import redact
from ocp_mamba.system.process import process_is_gone, process_tags
from ocp_mamba.tracking.stale_runs import StaleRun, end_killed_runs
from ocp_mamba.tracking.store import STORE_VARIABLE, store_errors, use_store
from ocp_mamba.tracking.tags import ENDED_REASON, OUTPUT, RESUMED_BY, RESUMED_TIMES

RUN_VARIABLE = "MLFLOW_RUN_ID"
"""How ``mlflow run`` tells a command the id of the run that it has made for it."""

SYSTEM_METRICS = "system/"
NOT_FOUND = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Opening:
    """A store that can be used, and what a training goes on with in it.

    Attributes:
        store: its address.
        run_id: of the interrupted run to go on with, or None.
        ended: runs that killed trainings had left RUNNING.
    """

    store: str
    run_id: str | None
    ended: list[StaleRun]


def open_store(output: Path, begun: tuple[str, str] | None, *, resume: bool) -> Opening:
    """Choose the store, find the run to go on with, and end what killed trainings left RUNNING.

    Args:
        output: of the training.
        begun: the id of the interrupted run and its store, where they are known.
        resume: search for an interrupted run that has no folder yet.

    Raises:
        TrackingError: the store cannot be used.
        ResumeError: it has no such run.
    """
    store = use_store()
    with store_errors(store):
        run_id = None
        if begun is not None:
            run_id = require_run(*begun, redact(store)).info.run_id
        elif resume:
            run_id = blank_run(output)
        ended = end_killed_runs(output, run_id)
    return Opening(store, run_id, ended)


def require_run(run_id: str, begun_in: str, store: str) -> Run:
    """Return an interrupted training's run.

    Args:
        run_id: its id.
        begun_in: the store in which it was made, redacted.
        store: the store in use, redacted.

    Raises:
        ResumeError: the store in use does not have it, or it was deleted.
        MlflowException: the store cannot be used.
    """
    try:
        run = mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        if error.error_code != NOT_FOUND:
            raise
        place = "" if begun_in == store else f" It was begun in {begun_in}: set {STORE_VARIABLE}."
        raise ResumeError(
            f"cannot resume run {run_id}: tracking store {store} does not have it.{place} Or leave "
            "--resume out to start a new run"
        ) from error
    if run.info.lifecycle_stage == LifecycleStage.DELETED:
        raise ResumeError(
            f"cannot resume run {run_id}: it was deleted in {store}. Get it back with `mlflow runs "
            f"restore --run-id {run_id}`, or leave --resume out to start a new run"
        )
    return run


def blank_run(output: Path) -> str | None:
    """Return the run of a training that was killed before it had a folder, or None.

    Args:
        output: the training's.
    """
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    wanted = f"tags.`{OUTPUT}` = '{_quoted(output)}' AND attributes.status = 'RUNNING'"
    runs = client.search_runs(experiments, wanted) if experiments else []
    blank = (r for r in runs if not r.data.params and process_is_gone(r.data.tags))
    return next((r.info.run_id for r in blank), None)


def _quoted(output: Path) -> str:
    return str(output).replace("'", "")


def output_tag(output: Path) -> dict[str, str]:
    """Return the tag by which `blank_run` finds a run."""
    return {OUTPUT: _quoted(output)}


def reopen(run_id: str, tags: Mapping[str, str]) -> None:
    """Make an interrupted run this process's own, and leave the run that ``mlflow run`` has made.

    The tags are set before the run's status, so that no other process takes the run for a stale
    one. The run of ``mlflow run`` ends at once, with a tag that names the run that goes on.
    """
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    times = int(run.data.tags.get(RESUMED_TIMES, "0")) + 1
    given = {**tags, **process_tags(), RESUMED_TIMES: str(times)}
    client.log_batch(run_id, tags=[RunTag(k, v) for k, v in given.items()])
    if ENDED_REASON in run.data.tags:
        client.delete_tag(run_id, ENDED_REASON)
    made = os.environ.pop(RUN_VARIABLE, None)
    if made is None:
        mlflow.set_experiment(experiment_id=run.info.experiment_id)  # else start_run refuses it
    elif made != run_id:
        client.set_tag(made, RESUMED_BY, run_id)
        client.set_terminated(made, "FINISHED")


def logged_points(run_id: str) -> frozenset[tuple[str, int]]:
    """Return the name and the step of every metric that a run holds; system metrics left out."""
    client = mlflow.MlflowClient()
    names = client.get_run(run_id).data.metrics
    return frozenset(
        (name, point.step)
        for name in names
        if not name.startswith(SYSTEM_METRICS)
        for point in client.get_metric_history(run_id, name)
    )
