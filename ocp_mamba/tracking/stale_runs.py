"""Stale runs: their status is RUNNING, and no process is left that could end them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow.entities import Run, ViewType

from ocp_mamba.system.process import HOST_TAG, PID_TAG, process_is_gone, processes_with, workers_of
from ocp_mamba.tracking.tags import ENDED_REASON, OUTPUT
from ocp_mamba.training.run_folder import is_free

PROJECT_NAMES = ("ocp-mamba", "ocp_mamba")
OLDER_THAN_MINUTES = 10.0


@dataclass(frozen=True)
class StaleRun:
    """A stale run, the status that it should have, and why."""

    run_id: str
    name: str
    experiment_id: str
    minutes: float
    status: str
    reason: str


def find_stale_runs(older_than_minutes: float = OLDER_THAN_MINUTES) -> list[StaleRun]:
    """Find this project's stale runs.

    There are three kinds: runs whose process, by the tags that it left, has ended on this host;
    sweeps whose workers have all ended; and runs that ``mlflow run`` made for a process that never
    started (conda is missing, a path does not exist). Runs of the last two kinds count only from
    an age of ``older_than_minutes`` on. Runs of other hosts are left alone.
    """
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    found, token = [], None
    while experiments:
        page = client.search_runs(
            experiments, "attributes.status = 'RUNNING'", page_token=token, max_results=1000
        )
        examined = (_examine(run, older_than_minutes) for run in page)
        found += [stale for stale in examined if stale is not None]
        token = page.token
        if not token:
            break
    return found


def end_stale_runs(runs: list[StaleRun]) -> None:
    """End each run with its status and a tag that says why."""
    client = mlflow.MlflowClient()
    for stale in runs:
        client.set_tag(stale.run_id, ENDED_REASON, stale.reason)
        client.set_terminated(stale.run_id, stale.status)


def end_killed_runs(output: Path, spared: str | None) -> list[StaleRun]:
    """End the runs that killed trainings of this host left RUNNING in a folder of outputs.

    A run counts if its process is gone and nobody has locked its folder; one that has neither
    folder nor params if its process is gone.

    Args:
        output: an output in that folder.
        spared: id of a run that is left as it is.
    """
    wanted = f"attributes.status = 'RUNNING' AND tags.`{OUTPUT}` LIKE '%'"
    client = mlflow.MlflowClient()
    experiments = [e.experiment_id for e in client.search_experiments(ViewType.ACTIVE_ONLY)]
    killed = []
    for run in client.search_runs(experiments, wanted) if experiments else []:
        folder = output.parent / run.info.run_id
        here = Path(run.data.tags[OUTPUT]).parent == output.parent
        free = is_free(folder) if folder.exists() else not run.data.params
        stale = _examine(run, 0.0)
        if here and free and stale is not None and run.info.run_id != spared:
            killed.append(stale)
    end_stale_runs(killed)
    return killed


def _examine(run: Run, older_than_minutes: float) -> StaleRun | None:
    tags = run.data.tags
    minutes = (time.time() - run.info.start_time / 1000) / 60
    if PID_TAG in tags:
        if process_is_gone(tags):
            reason = f"process {tags[PID_TAG]} on {tags[HOST_TAG]} is gone"
            return _stale(run, minutes, "KILLED", reason)
        return None
    if tags.get("kind") == "sweep":
        gone = all(process_is_gone(worker) for worker in workers_of(tags))
        if gone and minutes >= older_than_minutes:
            return _stale(run, minutes, "KILLED", "no worker of this sweep is left")
        return None
    never_started = (
        tags.get("mlflow.source.type") == "PROJECT"
        and _is_ours(tags.get("mlflow.source.name", ""))
        and minutes >= older_than_minutes
        and not processes_with("MLFLOW_RUN_ID", run.info.run_id)
    )
    if never_started:
        return _stale(run, minutes, "FAILED", "mlflow run made this run, but nothing started")
    return None


def _stale(run: Run, minutes: float, status: str, reason: str) -> StaleRun:
    info = run.info
    return StaleRun(info.run_id, info.run_name, info.experiment_id, minutes, status, reason)


def _is_ours(source: str) -> bool:
    """Whether a project run's source is this project: by its MLproject, or by its address."""
    place = source.split("#")[0]
    local = Path(place.removeprefix("file://"))
    try:
        text = (local / "MLproject").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = place
    return any(name in text for name in PROJECT_NAMES)
