"""The model registry: register a run's best model, and load a registered version back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ocp_mamba.baselines.checkpoint import SavedPredictor, load_predictor
from ocp_mamba.errors import CheckpointError, RegistryError, first_line
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.bundle import CHECKPOINT
from ocp_mamba.tracking.operations import BUNDLE_TAG, DIGEST_TAG
from ocp_mamba.tracking.store import STORE_FAILURES

MODEL_NAME = "ocp-mamba-lvm"
CANDIDATE = "candidate"

VERSION_METRICS = ("next_vec_cosine", "val_next_vec_cosine", "faiss_retrieval_p1")
RUN_TAGS = ("dataset.fingerprint", "encoder.name", "encoder.weight_hash", "git.commit")


def register_best(
    model_id: str,
    *,
    name: str = MODEL_NAME,
    alias: str | None = CANDIDATE,
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register a LoggedModel as the next version of a registered model; it may get an alias.

    The version's tags hold its cosine, epoch, run, dataset, encoder and gates, because on an SQL
    store MLflow 3.17 keeps neither the LoggedModel's id nor its metrics with the version.

    Args:
        model_id: a LoggedModel with whole weights, as `TrackedRun.log_models` returns it.
        name: the registered model, made where it does not exist.
        alias: moved to the new version; None moves none.
        tags: further tags of the version.

    Raises:
        RegistryError: the model does not exist or holds no weights.
    """
    client = mlflow.MlflowClient()
    try:
        model = client.get_logged_model(model_id)
        held = {
            Path(f.path).name for f in client.list_logged_model_artifacts(model_id, "artifacts")
        }
    except MlflowException as error:
        raise RegistryError(f"model {model_id}: {first_line(error)}") from error
    if CHECKPOINT not in held:
        raise RegistryError(
            f"model {model_id} ({model.name}) holds metrics, no weights; only the best, the last "
            "and every N-th epoch (checkpoint_every) are stored whole"
        )
    if model.source_run_id is None:
        raise RegistryError(f"model {model_id} belongs to no run, so nothing is known of it")
    run = client.get_run(model.source_run_id)
    version = mlflow.register_model(
        f"models:/{model_id}", name, tags={**_version_tags(model, run), **(tags or {})}
    )
    if alias is not None:
        client.set_registered_model_alias(name, alias, version.version)
    return client.get_model_version(name, version.version)


def _version_tags(model: LoggedModel, run: Run) -> dict[str, str]:
    tags = {
        "model_id": model.model_id,
        "run_id": run.info.run_id,
        "epoch": model.params.get("epoch", "unknown"),
        DIGEST_TAG: model.tags.get(DIGEST_TAG, "unknown"),
        BUNDLE_TAG: model.tags.get(BUNDLE_TAG, "none"),
    }
    measured = {m.key: m.value for m in model.metrics or []}
    tags |= {k: f"{measured[k]:.6f}" for k in VERSION_METRICS if k in measured}
    kept = (k for k in run.data.tags if k in RUN_TAGS or k.startswith("gate."))
    return tags | {k: run.data.tags[k] for k in kept}


def load_run_file(uri: str) -> SavedPredictor:
    """Load a predictor out of a ``.pt`` among a run's artifacts, in evaluation mode.

    Args:
        uri: such as ``runs:/RUN_ID/model.gru.pt``.

    Raises:
        RegistryError: there is no such run or file, or it cannot be read.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
            return load_predictor(path)
        except (MlflowException, OSError, CheckpointError) as error:
            raise RegistryError(f"{uri}: no model to load: {first_line(error)}") from error


def logged_model_id(uri: str) -> str | None:
    """Return the id of the LoggedModel behind ``models:/…``, or None if it is not known."""
    name = uri.removeprefix("models:/")
    if "@" not in name and "/" not in name:
        return name
    client = mlflow.MlflowClient()
    if "@" in name:
        version = client.get_model_version_by_alias(*name.split("@", 1))
    else:
        version = client.get_model_version(*name.split("/", 1))
    found: str | None = version.tags.get("model_id")
    return found


def load_version(uri: str) -> tuple[OCPMambaLVM, dict[str, Any]]:
    """Load the model out of a registered version or a LoggedModel, in evaluation mode.

    Only the ``.pt`` is read, with ``weights_only=True``; the version's code is not run.

    Args:
        uri: such as ``models:/ocp-mamba-lvm@candidate``, ``models:/ocp-mamba-lvm/3`` or
            ``models:/m-…``.

    Returns:
        The model, and the identity of the encoder whose vectors it was trained on.

    Raises:
        RegistryError: there is no such version, or it holds no weights that can be read.
    """
    with version_artifacts(uri) as folder:
        try:
            checkpoint = load_checkpoint(folder / CHECKPOINT)
            return checkpoint.build_model(), checkpoint.encoder
        except CheckpointError as error:
            raise RegistryError(f"{uri}: no model to load: {first_line(error)}") from error


@contextmanager
def version_artifacts(uri: str) -> Iterator[Path]:
    """Copy the files of a registered version or a LoggedModel, for as long as the block lasts.

    Args:
        uri: as `load_version`.

    Yields:
        The folder of its artifacts, which holds ``model.pt`` and, of a version that a training
        registered, its bundle.

    Raises:
        RegistryError: there is no such version, or it cannot be read.
    """
    if not uri.startswith("models:/"):
        raise RegistryError(f"{uri}: wanted models:/NAME@ALIAS, models:/NAME/VERSION or models:/ID")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
        except (MlflowException, OSError) as error:
            raise RegistryError(f"{uri}: no model to load: {first_line(error)}") from error
        yield Path(folder) / "artifacts"


def version_of_alias(alias: str, name: str = MODEL_NAME) -> str | None:
    """Return the number of the version that has an alias, or None where none has it.

    Raises:
        RegistryError: the store cannot be read.
    """
    client = mlflow.MlflowClient()
    try:
        if not client.search_registered_models(f"name = '{name}'"):
            return None
        version = client.get_registered_model(name).aliases.get(alias)
    except STORE_FAILURES as error:
        raise RegistryError(f"{name}@{alias}: {first_line(error)}") from error
    return None if version is None else str(version)
