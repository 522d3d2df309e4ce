"""The model registry: register a run's best model, and load a registered version back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
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
from ocp_mamba.serving.pyfunc import CHECKPOINT
from ocp_mamba.tracking.operations import DIGEST_TAG

MODEL_NAME = "ocp-mamba-lvm"
CANDIDATE = "candidate"
REGISTERED = "registration"
"""Tag of a version whose registration has come to its end."""

VERSION_METRICS = ("next_vec_cosine", "val_next_vec_cosine", "faiss_retrieval_p1")
RUN_TAGS = ("dataset.fingerprint", "encoder.name", "encoder.weight_hash", "git.commit")


def register_best(
    model_id: str,
    *,
    name: str = MODEL_NAME,
    alias: str = CANDIDATE,
    tags: Mapping[str, str] | None = None,
) -> ModelVersion:
    """Register a LoggedModel as the next version of a registered model and give it an alias.

    The version's tags hold its cosine, epoch, run, dataset, encoder and gates, because on an SQL
    store MLflow 3.17 keeps neither the LoggedModel's id nor its metrics with the version.

    Args:
        model_id: a LoggedModel with whole weights, as `TrackedRun.log_models` returns it.
        name: the registered model, made where it does not exist.
        alias: moved to the new version.
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
    client.set_registered_model_alias(name, alias, version.version)
    return client.get_model_version(name, version.version)


def register_once(model_id: str, run_id: str, sha256: str, name: str = MODEL_NAME) -> ModelVersion:
    """Register a run's model as `register_best` does, unless an earlier try has done so.

    A version whose registration was interrupted before it had its alias is made whole; one that had
    its alias does not get it back from a later version.

    Args:
        model_id: as `register_best`.
        run_id: of the run that the model is the best of.
        sha256: of the ``.pt`` that was evaluated; another one is not registered.
        name: of the registered model.

    Raises:
        RegistryError: the model does not exist, holds no weights or other ones.
    """
    client = mlflow.MlflowClient()
    wanted = f"name = '{name}' AND tags.run_id = '{run_id}' AND tags.`{DIGEST_TAG}` = '{sha256}'"
    found = sorted(client.search_model_versions(wanted), key=lambda v: int(v.version))
    if not found:
        held = client.get_logged_model(model_id).tags.get(DIGEST_TAG)
        if held != sha256:
            raise RegistryError(
                f"model {model_id} holds the weights {str(held)[:12]}, those that were evaluated "
                f"are {sha256[:12]}; nothing was registered"
            )
        found = [register_best(model_id, name=name)]
    (first, *_) = found
    if REGISTERED not in first.tags:
        client.set_registered_model_alias(name, CANDIDATE, first.version)
        client.set_model_version_tag(name, first.version, REGISTERED, "whole")
    return client.get_model_version(name, first.version)


def _version_tags(model: LoggedModel, run: Run) -> dict[str, str]:
    tags = {
        "model_id": model.model_id,
        "run_id": run.info.run_id,
        "epoch": model.params.get("epoch", "unknown"),
        DIGEST_TAG: model.tags.get(DIGEST_TAG, "unknown"),
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
    if not uri.startswith("models:/"):
        raise RegistryError(f"{uri}: wanted models:/NAME@ALIAS, models:/NAME/VERSION or models:/ID")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
            checkpoint = load_checkpoint(Path(folder) / "artifacts" / CHECKPOINT)
            return checkpoint.build_model(), checkpoint.encoder
        except (MlflowException, OSError, CheckpointError) as error:
            raise RegistryError(f"{uri}: no model to load: {first_line(error)}") from error
