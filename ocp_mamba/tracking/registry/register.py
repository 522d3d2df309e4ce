"""Registration of a run's best model, once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import mlflow
from mlflow.entities import LoggedModel, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ocp_mamba.errors import RegistryError, first_line
from ocp_mamba.serving.bundle import CHECKPOINT
from ocp_mamba.tracking.registry.aliases import CANDIDATE, MODEL_NAME, set_alias
from ocp_mamba.tracking.registry.candidate import move_candidate
from ocp_mamba.tracking.tags import BUNDLE, DIGEST, NOTE

REGISTERED, BEGUN, WHOLE = "registration", "begun", "whole"
"""The tag of a version that `register_once` made, and its values before and after the alias."""

MODEL_NOTE = (
    "A latent vector model of ocp_mamba: it reads the vectors of a chain of concepts and predicts "
    "the vector of the next one. A version is the best epoch of a training, and its description is "
    "that run's verdict with all gates."
)
"""Describes the registered model of vectors."""

VERSION_METRICS = ("next_vec_cosine", "val_next_vec_cosine", "faiss_retrieval_p1")
RUN_TAGS = ("dataset.fingerprint", "encoder.name", "encoder.weight_hash", "git.commit")


def register_best(
    model_id: str,
    *,
    name: str = MODEL_NAME,
    alias: str | None = CANDIDATE,
    tags: Mapping[str, str] | None = None,
    about: str = MODEL_NOTE,
    description: str | None = None,
) -> ModelVersion:
    """Register a LoggedModel as the next version of a registered model; it may get an alias.

    The version's tags hold its cosine, epoch, run, dataset, encoder and gates, because on an SQL
    store MLflow 3.17 keeps neither the LoggedModel's id nor its metrics with the version.

    Args:
        model_id: a LoggedModel with whole weights, as `TrackedRun.log_models` returns it.
        name: the registered model, made where it does not exist.
        alias: moved to the new version; None moves none.
        tags: further tags of the version.
        about: describes the registered model, where it has no description yet.
        description: of the version; None for that of its run.

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
    if not client.get_registered_model(name).description:
        client.update_registered_model(name, about)
    if description is None:
        description = run.data.tags.get(NOTE, "")
    client.update_model_version(name, version.version, description)
    if alias is not None:
        set_alias(name, alias, version.version)
    return client.get_model_version(name, version.version)


def register_once(
    model_id: str, run_id: str, sha256: str, name: str = MODEL_NAME, *, alias_anyway: bool = False
) -> ModelVersion:
    """Register a run's model, unless an earlier try has done so, and see to ``candidate``.

    `move_candidate` decides whether the alias moves. A version whose registration was interrupted
    before that is made whole.

    Args:
        model_id: as `register_best`.
        run_id: of the run that the model is the best of.
        sha256: of the ``.pt`` that was evaluated; another one is not registered.
        name: of the registered model.
        alias_anyway: move the alias whatever speaks against it.

    Raises:
        RegistryError: the model does not exist, holds no weights or other ones.
    """
    client = mlflow.MlflowClient()
    wanted = f"name = '{name}' AND tags.run_id = '{run_id}' AND tags.`{DIGEST}` = '{sha256}'"

    def versions() -> list[ModelVersion]:
        made = client.search_model_versions(wanted)
        return sorted(made, key=lambda v: (v.tags.get(REGISTERED) != WHOLE, int(v.version)))

    found = versions()
    if not found:
        held = client.get_logged_model(model_id).tags.get(DIGEST)
        if held != sha256:
            raise RegistryError(
                f"model {model_id} holds the weights {str(held)[:12]}, those that were evaluated "
                f"are {sha256[:12]}; nothing was registered"
            )
        register_best(model_id, name=name, alias=None, tags={REGISTERED: BEGUN})
        found = versions()
    first, *others = found
    for other in others:
        if other.tags.get(REGISTERED) == BEGUN:  # the answer to the first request was lost
            client.delete_model_version(name, other.version)
    if first.tags.get(REGISTERED) != WHOLE:
        move_candidate(first, anyway=alias_anyway)
        client.set_model_version_tag(name, first.version, REGISTERED, WHOLE)
    return client.get_model_version(name, first.version)


def _version_tags(model: LoggedModel, run: Run) -> dict[str, str]:
    tags = {
        "model_id": model.model_id,
        "run_id": run.info.run_id,
        "epoch": model.params.get("epoch", "unknown"),
        DIGEST: model.tags.get(DIGEST, "unknown"),
        BUNDLE: model.tags.get(BUNDLE, "none"),
    }
    measured = {m.key: m.value for m in model.metrics or []}
    tags |= {k: f"{measured[k]:.6f}" for k in VERSION_METRICS if k in measured}
    kept = (k for k in run.data.tags if k in RUN_TAGS or k.startswith("gate."))
    return tags | {k: run.data.tags[k] for k in kept}
