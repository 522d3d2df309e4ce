"""Registered models and files of runs, loaded back."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from ocp_mamba.baselines.checkpoint import SavedPredictor, load_predictor
from ocp_mamba.errors import CheckpointError, RegistryError, first_line
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.bundle import CHECKPOINT
from ocp_mamba.tracking.registry.aliases import MODEL_NAME
from ocp_mamba.tracking.store import STORE_FAILURES


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
        RegistryError: as `load_registered`.
    """
    checkpoint, model = load_registered(uri)
    return model, checkpoint.encoder


def load_registered(uri: str) -> tuple[Checkpoint, OCPMambaLVM]:
    """Load the whole ``.pt`` of a registered version, and its model; ``uri`` as `load_version`.

    Raises:
        RegistryError: there is no such version, or it holds no weights that can be read.
    """
    with version_artifacts(uri) as folder:
        try:
            checkpoint = load_checkpoint(folder / CHECKPOINT)
            return checkpoint, checkpoint.build_model()
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
