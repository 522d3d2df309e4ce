"""The operations that a run sends to the tracking store, each harmless to apply twice.

An epoch is a row of the Models page: a LoggedModel named ``epoch-003``. MLflow 3.17 lets any
LoggedModel be registered, whatever its status. So a row without weights stays PENDING and is marked
as an *external* model, which MLflow refuses to load or serve, registered or not. The operation
``model`` turns such a row into a whole model, READY, in place.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import (
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from ocp_mamba.serving.pyfunc import save_pyfunc
from ocp_mamba.tracking.offline_queue import Operation
from ocp_mamba.tracking.tags import NOTE, PARENT

EXTERNAL_TAG = "mlflow.model.isExternal"
WEIGHTS_TAG, DIGEST_TAG, OPERATION_TAG = "weights", "checkpoint.sha256", "operation"
MODEL_TYPE = "ocp-mamba-lvm"
WEIGHTLESS_NOTE = (
    "Metrics of one epoch, without weights: it cannot be loaded, served or promoted, and stays "
    "Pending. Whole models are stored of the best and the last epoch, and of every N-th "
    "(checkpoint_every)."
)
MAX_TAG_CHARACTERS = 5000
BATCH = 100


def metric_entry(
    key: str, value: float, timestamp: int, step: int, dataset: tuple[str, str] | None = None
) -> dict[str, Any]:
    """Return a metric as JSON; ``dataset`` is (name, digest) of the split it was computed on."""
    return {"key": key, "value": value, "time": timestamp, "step": step, "dataset": dataset}


def model_entry(epoch: int, checkpoint: Path, *, delete_checkpoint: bool = False) -> Operation:
    """Return the operation that turns an epoch's row into a whole model, from a ``.pt``."""
    return {
        "op": "model",
        "epoch": epoch,
        "checkpoint": str(checkpoint.resolve()),
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "delete_checkpoint": delete_checkpoint,
    }


def apply(operation: Operation) -> str | None:
    """Apply one operation to the current tracking store.

    Returns:
        The LoggedModel's id for ``log`` with an epoch and for ``model``, the run's for ``child``.

    Raises:
        MlflowException: the store refuses, cannot be reached, or knows no such operation.
    """
    kind = operation["op"]
    if kind not in APPLY:
        raise MlflowException.invalid_parameter_value(f"there is no operation {kind!r}")
    return APPLY[kind](operation)


def _log(operation: Operation) -> str | None:
    """Metrics, params and tags of a run; with an ``epoch`` also its row of the Models page."""
    client = mlflow.MlflowClient()
    run_id = operation["run_id"]
    model_id = None
    if (epoch := operation.get("epoch")) is not None:
        model_id = _epoch_row(run_id, epoch).model_id
    metrics = [
        Metric(
            m["key"],
            m["value"],
            m["time"],
            m["step"],
            model_id=model_id if m["dataset"] else None,
            dataset_name=m["dataset"][0] if m["dataset"] else None,
            dataset_digest=m["dataset"][1] if m["dataset"] else None,
            run_id=run_id,
        )
        for m in operation.get("metrics", [])
    ]
    params = [Param(k, v) for k, v in operation.get("params", {}).items()]
    tags = [RunTag(k, v[:MAX_TAG_CHARACTERS]) for k, v in operation.get("tags", {}).items()]
    for start in range(0, max(len(metrics), len(params), len(tags)), BATCH):
        part = slice(start, start + BATCH)
        client.log_batch(run_id, metrics[part], params[part], tags[part])
    return model_id


def _epoch_row(run_id: str, epoch: int) -> LoggedModel:
    """Find an epoch's LoggedModel, or create it without weights and link it to the run."""
    client = mlflow.MlflowClient()
    run = client.get_run(run_id)
    name = f"epoch-{epoch:03d}"
    rows = client.search_logged_models(
        [run.info.experiment_id], filter_string=f"name = '{name}' AND source_run_id = '{run_id}'"
    )
    row = rows[0] if rows else None
    if row is None:
        row = mlflow.initialize_logged_model(
            name=name,
            source_run_id=run_id,
            tags={EXTERNAL_TAG: "true"},
            params={"epoch": str(epoch)},
            model_type=MODEL_TYPE,
            experiment_id=run.info.experiment_id,
        )
    if WEIGHTS_TAG not in row.tags:
        _mark_weightless(row)
    linked = run.outputs.model_outputs if run.outputs else []
    if row.model_id not in {output.model_id for output in linked}:
        client.log_outputs(run_id, [LoggedModelOutput(row.model_id, epoch)])
    return row


def _mark_weightless(row: LoggedModel) -> None:
    """Give a row the MLmodel file of an external model, so that loading it fails with a reason."""
    client = mlflow.MlflowClient()
    mark = Model(
        model_id=row.model_id,
        model_uuid=row.model_id,
        run_id=row.source_run_id,
        metadata={EXTERNAL_TAG: True},
    )
    with tempfile.TemporaryDirectory() as folder:
        mark.save(str(Path(folder) / MLMODEL_FILE_NAME))
        client.log_model_artifacts(row.model_id, folder)
    client.set_logged_model_tags(row.model_id, {WEIGHTS_TAG: "none", NOTE: WEIGHTLESS_NOTE})


def _store_model(operation: Operation) -> str:
    """Put a checkpoint's weights, code and schema into its epoch's LoggedModel."""
    client = mlflow.MlflowClient()
    run_id, digest = operation["run_id"], operation["sha256"]
    checkpoint = Path(operation["checkpoint"])
    row = _epoch_row(run_id, operation["epoch"])
    if row.tags.get(DIGEST_TAG) != digest:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_pyfunc(folder, checkpoint, model_id=row.model_id, run_id=run_id)
            client.log_model_artifacts(row.model_id, str(folder))
        client.finalize_logged_model(row.model_id, LoggedModelStatus.READY)
        if EXTERNAL_TAG in row.tags:
            client.delete_logged_model_tag(row.model_id, EXTERNAL_TAG)
    client.set_logged_model_tags(
        row.model_id,
        {
            WEIGHTS_TAG: "whole",
            DIGEST_TAG: digest,
            NOTE: f"The whole model of epoch {operation['epoch']}: it loads, serves and registers.",
            **operation.get("tags", {}),
        },
    )
    if operation.get("delete_checkpoint"):
        checkpoint.unlink(missing_ok=True)
    return row.model_id


def _artifact(operation: Operation) -> None:
    mlflow.MlflowClient().log_artifact(
        operation["run_id"], operation["path"], operation["artifact_path"]
    )


def _child(operation: Operation) -> str:
    """A finished run nested under another one."""
    client = mlflow.MlflowClient()
    parent = client.get_run(operation["run_id"])
    experiment_id = parent.info.experiment_id
    found = client.search_runs(
        [experiment_id], f"tags.{OPERATION_TAG} = '{operation['id']}'", max_results=1
    )
    tags = {PARENT: parent.info.run_id, OPERATION_TAG: operation["id"]}
    if user := parent.data.tags.get("mlflow.user"):
        tags["mlflow.user"] = user
    child = (
        found[0]
        if found
        else client.create_run(experiment_id, operation["time"], tags, operation["name"])
    )
    child_id = child.info.run_id
    _log({**operation, "run_id": child_id})
    for path in operation.get("files", []):
        client.log_artifact(child_id, path)
    client.set_terminated(child_id, "FINISHED", operation["time"])
    return child_id


def _end(operation: Operation) -> None:
    mlflow.MlflowClient().set_terminated(
        operation["run_id"], operation["status"], operation["time"]
    )


def _model_input(operation: Operation) -> None:
    mlflow.MlflowClient().log_inputs(
        operation["run_id"], models=[LoggedModelInput(operation["model_id"])]
    )


APPLY: dict[str, Callable[[Operation], str | None]] = {
    "log": _log,
    "model": _store_model,
    "artifact": _artifact,
    "child": _child,
    "model_input": _model_input,
    "end": _end,
}
