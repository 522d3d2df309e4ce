"""A sweep in MLflow: its one parent run, and a child run for each trial.

Runs are written to by their ids, not as MLflow's active run: several workers write to one parent,
and a trial whose worker died continues in the run that it had.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric, Param, Run, RunTag

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import TrackingError, first_line
from ocp_mamba.redact import redact
from ocp_mamba.system.process import process_tags, worker_tag
from ocp_mamba.tracking.charts import describe_experiment
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.session import RUN_VARIABLE, identity_tags
from ocp_mamba.tracking.store import (
    STORE_FAILURES,
    STORE_VARIABLE,
    open_experiment,
    retried,
    unusable,
)
from ocp_mamba.tracking.tags import ENDED_REASON, MAX_TAG_CHARACTERS, PARENT
from ocp_mamba.training.state import EpochResult

LOGGED_EACH_EPOCH = "val_next_vec_cosine"
SWEEP_TAG, TRIAL_TAG, KIND_TAG = "sweep.id", "sweep.trial", "kind"


class TrialRun(TrackedRun):
    """A trial's run: the metrics of its epochs, no models.

    A run that another worker began keeps the epochs that it has. The same seed and settings give
    the same epochs again, and each is logged once.
    """

    has_rows = False

    def __init__(
        self, run: Run, store: str, dataset: Dataset, data_path: Path, output_dir: Path
    ) -> None:
        """Wrap a run as `open_trial_run` gives it."""
        super().__init__(run, store, dataset, data_path, output_dir)
        self._logged_until = self._last_logged_epoch()

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log the params that the run does not have yet."""
        new = {k: v for k, v in params.items() if k not in self._logged_params}
        super().log_params(new)

    def on_epoch(self, result: EpochResult) -> None:
        """Log an epoch, unless an earlier worker of this trial has logged it."""
        if result.epoch > self._logged_until:
            super().on_epoch(result)
        self._best = self._better(result)

    def _last_logged_epoch(self) -> int:
        """The last epoch that the run holds in the store or in its queue; 0 for none."""
        client = mlflow.MlflowClient()
        logged = [m.step for m in client.get_metric_history(self.run_id, LOGGED_EACH_EPOCH)]
        for operation in self._sender.waiting():
            metrics = operation.get("metrics", []) if operation["op"] == "log" else []
            logged += [m["step"] for m in metrics if m["key"] == LOGGED_EACH_EPOCH]
        return max(logged, default=0)


def open_trial_run(
    parent: ParentRun,
    trial: int,
    dataset: Dataset,
    run_id: str | None,
    tags: Mapping[str, str],
    *,
    search: bool,
) -> Run:
    """Return a trial's run, RUNNING: the one that an earlier worker made for it, or a new one.

    Args:
        parent: the sweep's run.
        trial: the trial's first number, which its retries share.
        dataset: the dataset that it is trained on.
        run_id: the run's id, if it is known.
        tags: further tags.
        search: search for the run of a worker that was killed before it stored the run's id.
    """
    client = mlflow.MlflowClient()
    wanted = {SWEEP_TAG: parent.sweep_id, TRIAL_TAG: str(trial), KIND_TAG: "trial"}
    made = client.get_run(run_id) if run_id else None
    if made is None and search:
        made = _find(parent.experiment_id, wanted)
    if made is None:
        return client.create_run(
            parent.experiment_id,
            tags={PARENT: parent.run_id, **wanted, **identity_tags(dataset), **tags},
            run_name=f"trial {trial}",
        )
    _reopen(made)
    client.log_batch(made.info.run_id, tags=_tags({**process_tags(), **tags}))
    return client.get_run(made.info.run_id)


class ParentRun:
    """The sweep's run, to which all workers write."""

    def __init__(self, run_id: str, sweep_id: str, store: str) -> None:
        """Find the run.

        Raises:
            TrackingError: the store does not have it.
        """
        self.run_id, self.sweep_id, self.store = run_id, sweep_id, redact(store)
        try:
            info = mlflow.MlflowClient().get_run(run_id).info
            self.experiment_id: str = info.experiment_id
            self.name: str = info.run_name
            self.experiment: str = mlflow.get_experiment(info.experiment_id).name
        except STORE_FAILURES as error:
            raise TrackingError(
                f"tracking store {redact(store)} has no run {run_id}, the parent of this sweep: "
                f"{first_line(error)}. Set {STORE_VARIABLE} to the store that the sweep began with"
            ) from error

    def log(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Log params, metrics and tags; a param that the run has already is not changed."""
        client = mlflow.MlflowClient()
        held = client.get_run(self.run_id).data.params if params else {}
        now = mlflow.utils.time.get_current_time_millis()
        client.log_batch(
            self.run_id,
            [Metric(k, v, now, step) for k, v in (metrics or {}).items()],
            [Param(k, redact(str(v))) for k, v in (params or {}).items() if k not in held],
            _tags(tags or {}),
        )

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into a folder of the run's artifacts, over an older one of its name."""
        mlflow.MlflowClient().log_artifact(self.run_id, str(path), folder)

    def running(self) -> None:
        """Mark the run as RUNNING, and this process as one that works on it.

        Raises:
            TrackingError: the store does not answer.
        """
        client = mlflow.MlflowClient()
        try:
            _reopen(client.get_run(self.run_id))
            client.set_tag(self.run_id, *worker_tag())
        except STORE_FAILURES as error:
            raise TrackingError(
                f"tracking store {self.store}: {first_line(error)}. Run the sweep again when it "
                "answers"
            ) from error

    def left(self) -> None:
        """Remove the mark of this process, which no longer works on the run."""
        client = mlflow.MlflowClient()
        name, _ = worker_tag()
        if name in client.get_run(self.run_id).data.tags:
            client.delete_tag(self.run_id, name)

    def end(self, status: str, reason: str) -> None:
        """End the run with a status and the reason for it."""
        client = mlflow.MlflowClient()
        client.log_batch(self.run_id, tags=_tags({ENDED_REASON: reason}))
        client.set_terminated(self.run_id, status)


def make_parent(sweep_id: str, experiment: str, name: str, dataset: Dataset, store: str) -> str:
    """Return the id of the sweep's run: the one it has, else ``mlflow run``'s, else a new one.

    Call this under the storage's lock.
    """
    client = mlflow.MlflowClient()
    tags = {SWEEP_TAG: sweep_id, KIND_TAG: "sweep", **identity_tags(dataset)}
    for tag in process_tags():  # the run has many workers, and outlives the one that made it
        del tags[tag]
    adopted = os.environ.pop(RUN_VARIABLE, None)
    try:
        if adopted:
            client.log_batch(adopted, tags=_tags(tags))
            client.update_run(adopted, name=name)
            return adopted
        experiment_id = open_experiment(experiment)
        retried(lambda: describe_experiment(experiment_id))
        found = _find(experiment_id, {SWEEP_TAG: sweep_id, KIND_TAG: "sweep"})
        run = found or client.create_run(experiment_id, tags=tags, run_name=name)
        return run.info.run_id
    except STORE_FAILURES as error:
        raise unusable(store, error) from error


def end_trial_run(run_id: str, status: str, reason: str) -> None:
    """End the run of a trial that no worker runs."""
    client = mlflow.MlflowClient()
    client.set_tag(run_id, ENDED_REASON, reason)
    client.set_terminated(run_id, status)


def leave_project_run(parent_id: str) -> None:
    """Tag the run that ``mlflow run`` made for this process with the id of the sweep's run."""
    adopted = os.environ.pop(RUN_VARIABLE, None)
    if adopted and adopted != parent_id:
        mlflow.MlflowClient().log_batch(
            adopted, tags=_tags({"sweep.parent": parent_id, KIND_TAG: "sweep worker"})
        )


def _reopen(run: Run) -> None:
    """Mark a run as RUNNING, whatever its status was."""
    client = mlflow.MlflowClient()
    if run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    if ENDED_REASON in run.data.tags:
        client.delete_tag(run.info.run_id, ENDED_REASON)


def _find(experiment_id: str, tags: Mapping[str, str]) -> Run | None:
    """The one run of an experiment with these tags."""
    wanted = " AND ".join(f"tags.`{k}` = '{v}'" for k, v in tags.items())
    found = mlflow.MlflowClient().search_runs([experiment_id], wanted, max_results=1)
    return found[0] if found else None


def _tags(tags: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(k, redact(v)[:MAX_TAG_CHARACTERS]) for k, v in tags.items()]
