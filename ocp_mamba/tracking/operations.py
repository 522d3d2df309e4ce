"""The operations that a run sends to the tracking store, each harmless to apply twice.

An epoch is a row of the Models page: a LoggedModel named ``epoch-003``. MLflow 3.17 lets any
LoggedModel be registered, whatever its status. So a row without weights stays PENDING and is marked
as an *external* model, which MLflow refuses to load or serve, registered or not. The operation
``model`` turns such a row into a whole model, READY, in place.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import (
    FileInfo,
    LoggedModel,
    LoggedModelInput,
    LoggedModelOutput,
    LoggedModelStatus,
    Metric,
    Param,
    Run,
    RunTag,
)
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from ocp_mamba.errors import RegistryError
from ocp_mamba.serving.bundle import CHECKPOINT
from ocp_mamba.serving.pyfunc import save_pyfunc
from ocp_mamba.serving.text_pyfunc import save_text_pyfunc
from ocp_mamba.system.files import sha256_of
from ocp_mamba.tracking.offline_queue import Operation
from ocp_mamba.tracking.registry import register_once
from ocp_mamba.tracking.registry.text import follow_aliases, register_text
from ocp_mamba.tracking.store import retried
from ocp_mamba.tracking.tags import BUNDLE, DIGEST, MAX_TAG_CHARACTERS, NOTE, PARENT

EXTERNAL_TAG = "mlflow.model.isExternal"
WEIGHTS_TAG, OPERATION_TAG = "weights", "operation"
MODEL_TYPE, TEXT_MODEL_TYPE = "ocp-mamba-lvm", "ocp-mamba-lvm-text"
TEXT_ROW = "text"
"""Name of a run's LoggedModel that is asked in words."""
WEIGHTLESS_NOTE = (
    "Metrics of one epoch, without weights: it cannot be loaded, served or promoted, and stays "
    "Pending. Whole models are stored of the best and the last epoch, and of every N-th "
    "(checkpoint_every)."
)
BATCH = 100


def model_entry(
    epoch: int,
    checkpoint: Path,
    bundle: Sequence[Path] = (),
    *,
    delete_checkpoint: bool = False,
) -> Operation:
    """Return the operation that turns an epoch's row into a whole model, from a ``.pt``.

    Args:
        epoch: of the row.
        checkpoint: the ``.pt``.
        bundle: files of `write_bundle`, the manifest last; deleted when the store has them, also in
            the model for people.
        delete_checkpoint: delete the ``.pt`` when the store has it.
    """
    return {
        "op": "model",
        "epoch": epoch,
        "checkpoint": str(checkpoint.resolve()),
        "sha256": sha256_of(checkpoint),
        "bundle": [str(path.resolve()) for path in bundle],
        "bundle_sha256": sha256_of(bundle[-1]) if bundle else None,
        "delete_checkpoint": delete_checkpoint,
    }


def text_model_entry(model: Operation) -> Operation:
    """Return the operation that stores the model for people, of the files of a `model_entry`."""
    return {**model, "op": "text_model"}


def register_entry(epoch: int, sha256: str, name: str, *, alias_anyway: bool) -> Operation:
    """Return the operation that registers an epoch's whole model, and the model for people.

    Args:
        epoch: of the row.
        sha256: of the ``.pt``.
        name: of the registered model.
        alias_anyway: move the alias ``candidate`` to the version whatever its gates say.
    """
    return {
        "op": "register",
        "epoch": epoch,
        "sha256": sha256,
        "name": name,
        "alias_anyway": alias_anyway,
    }


def apply(operation: Operation) -> Any:
    """Apply one operation to the current tracking store, again where another process was first.

    Returns:
        The LoggedModel's id for ``log`` with an epoch, ``model`` and ``text_model``, the run's for
        ``child``, the version for ``register``.

    Raises:
        MlflowException: the store refuses, cannot be reached, or knows no such operation.
    """
    kind = operation["op"]
    if kind not in APPLY:
        raise MlflowException.invalid_parameter_value(f"there is no operation {kind!r}")
    return retried(lambda: APPLY[kind](operation))


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

    def rows() -> list[LoggedModel]:
        found = client.search_logged_models(
            [run.info.experiment_id],
            filter_string=f"name = '{name}' AND source_run_id = '{run_id}'",
        )
        return sorted(found, key=lambda row: (row.creation_timestamp, row.model_id))

    found = rows()
    if not found:
        mlflow.initialize_logged_model(
            name=name,
            source_run_id=run_id,
            tags={EXTERNAL_TAG: "true"},
            params={"epoch": str(epoch)},
            model_type=MODEL_TYPE,
            experiment_id=run.info.experiment_id,
        )
        found = rows()
    row, *doubled = found
    for other in doubled:  # made again where the answer to the first request was lost
        client.delete_logged_model(other.model_id)
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
    """Put a checkpoint's weights, code, schema and bundle into its epoch's LoggedModel."""
    client = mlflow.MlflowClient()
    run_id, digest = operation["run_id"], operation["sha256"]
    checkpoint = Path(operation["checkpoint"])
    bundle = [Path(name) for name in operation.get("bundle", [])]
    tags = {DIGEST: digest}
    if bundle:
        tags[BUNDLE] = operation["bundle_sha256"]
    row = _epoch_row(run_id, operation["epoch"])
    if not tags.items() <= row.tags.items():
        _require_unchanged(checkpoint, digest)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            save_pyfunc(folder, checkpoint, bundle, model_id=row.model_id, run_id=run_id)
            client.log_model_artifacts(row.model_id, str(folder))
        _require_stored(client.list_logged_model_artifacts(row.model_id, "artifacts"), CHECKPOINT)
        client.finalize_logged_model(row.model_id, LoggedModelStatus.READY)
        if EXTERNAL_TAG in row.tags:
            client.delete_logged_model_tag(row.model_id, EXTERNAL_TAG)
    client.set_logged_model_tags(
        row.model_id,
        {
            WEIGHTS_TAG: "whole",
            NOTE: f"The whole model of epoch {operation['epoch']}: it loads, serves and registers.",
            **tags,
            **operation.get("tags", {}),
        },
    )
    if operation.get("delete_checkpoint"):
        checkpoint.unlink(missing_ok=True)
    _delete_bundle(operation)
    return row.model_id


def _delete_bundle(operation: Operation) -> None:
    """Delete a bundle's files, once both models that are made of them are stored."""
    bundle = [Path(name) for name in operation.get("bundle", [])]
    if not bundle:
        return
    row = _epoch_row(operation["run_id"], operation["epoch"])
    texts = _text_rows(operation["run_id"], row.experiment_id)
    for stored in ([row], texts):
        if operation["bundle_sha256"] not in {model.tags.get(BUNDLE) for model in stored}:
            return
    for path in bundle:
        path.unlink(missing_ok=True)
    with suppress(OSError):  # other files are in it
        bundle[0].parent.rmdir()


def _require_unchanged(checkpoint: Path, digest: str) -> None:
    """Raise where a file is no longer the one that was evaluated: another one may lie there now."""
    found = sha256_of(checkpoint)
    if found != digest:
        raise RegistryError(
            f"{checkpoint} has the SHA-256 {found[:12]}, wanted {digest[:12]}: it has changed "
            "since it was evaluated; nothing was stored"
        )


def _store_text_model(operation: Operation) -> str:
    """Store a checkpoint and its bundle as a LoggedModel of the run that is asked in words."""
    client = mlflow.MlflowClient()
    run_id = operation["run_id"]
    experiment_id = client.get_run(run_id).info.experiment_id
    tags = {DIGEST: operation["sha256"], BUNDLE: operation["bundle_sha256"]}
    found = _text_rows(run_id, experiment_id)
    for stored in found:
        if tags.items() <= stored.tags.items():
            _delete_bundle(operation)
            return stored.model_id
    begun = [row for row in found if WEIGHTS_TAG not in row.tags]
    row = (
        begun[0]
        if begun
        else mlflow.initialize_logged_model(
            name=TEXT_ROW,
            source_run_id=run_id,
            params={"epoch": str(operation["epoch"])},
            model_type=TEXT_MODEL_TYPE,
            experiment_id=experiment_id,
        )
    )
    bundle = [Path(name) for name in operation["bundle"]]
    checkpoint = Path(operation["checkpoint"])
    _require_unchanged(checkpoint, operation["sha256"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_text_pyfunc(folder, checkpoint, bundle, model_id=row.model_id, run_id=run_id)
        client.log_model_artifacts(row.model_id, str(folder))
    client.finalize_logged_model(row.model_id, LoggedModelStatus.READY)
    client.set_logged_model_tags(row.model_id, {WEIGHTS_TAG: "whole", **tags})
    client.log_outputs(run_id, [LoggedModelOutput(row.model_id, operation["epoch"])])
    _delete_bundle(operation)
    return row.model_id


def _text_rows(run_id: str, experiment_id: str) -> list[LoggedModel]:
    """The LoggedModels of a run that are asked in words, stored or begun."""
    wanted = f"name = '{TEXT_ROW}' AND source_run_id = '{run_id}'"
    return list(mlflow.MlflowClient().search_logged_models([experiment_id], filter_string=wanted))


def _artifact(operation: Operation) -> None:
    run_id, path, folder = (operation[key] for key in ("run_id", "path", "artifact_path"))
    client = mlflow.MlflowClient()
    client.log_artifact(run_id, path, folder)
    _require_stored(client.list_artifacts(run_id, folder), Path(path).name)


def _require_stored(files: Sequence[FileInfo], name: str) -> None:
    """Raise where a file is not among those listed: a proxy may answer an upload in its place."""
    if name not in {Path(file.path).name for file in files}:
        raise MlflowException(f"{name} was sent, but the store does not have it")


def _child(operation: Operation) -> str:
    """A finished run nested under another one."""
    client = mlflow.MlflowClient()
    parent = client.get_run(operation["run_id"])
    experiment_id = parent.info.experiment_id

    def made() -> list[Run]:
        wanted = f"tags.{OPERATION_TAG} = '{operation['id']}'"
        return list(client.search_runs([experiment_id], wanted, order_by=["start_time", "run_id"]))

    found = made()
    tags = {PARENT: parent.info.run_id, OPERATION_TAG: operation["id"]}
    if user := parent.data.tags.get("mlflow.user"):
        tags["mlflow.user"] = user
    if not found:
        client.create_run(experiment_id, operation["time"], tags, operation["name"])
        found = made()
    child, *doubled = found
    for other in doubled:  # made again where the answer to the first request was lost
        client.delete_run(other.info.run_id)
    child_id = child.info.run_id
    if child.info.status == "FINISHED":
        return child_id
    _log({**operation, "run_id": child_id})
    for path in operation.get("files", []):
        client.log_artifact(child_id, path)
        _require_stored(client.list_artifacts(child_id), Path(path).name)
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


def _register(operation: Operation) -> ModelVersion:
    """Register an epoch's whole model, and that for people, unless an earlier try has done so."""
    run_id, digest = operation["run_id"], operation["sha256"]
    row = _epoch_row(run_id, operation["epoch"])
    version = register_once(
        row.model_id,
        run_id,
        digest,
        operation["name"],
        alias_anyway=operation["alias_anyway"],
    )
    for text in _text_rows(run_id, row.experiment_id):
        if text.tags.get(DIGEST) == digest:
            register_text(text.model_id, version)
    follow_aliases(version.name)
    return version


APPLY: dict[str, Callable[[Operation], Any]] = {
    "log": _log,
    "model": _store_model,
    "text_model": _store_text_model,
    "artifact": _artifact,
    "child": _child,
    "model_input": _model_input,
    "register": _register,
    "end": _end,
}
