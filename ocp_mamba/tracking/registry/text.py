"""The registered model for people, whose versions belong to those of the model of vectors."""

from __future__ import annotations

import tempfile
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ocp_mamba.errors import EvidenceError, RegistryError, first_line
from ocp_mamba.serving.bundle import MANIFEST
from ocp_mamba.tracking.registry.aliases import MODEL_NAME
from ocp_mamba.tracking.registry.register import register_best

TEXT_MODEL_NAME = f"{MODEL_NAME}-text"
VECTOR_VERSION = "vector_version"
"""Tag of a text version: the version of `MODEL_NAME` whose files it holds."""

EXAMPLE = '{"inputs": [{"concepts": ["sand tiger", "shark"]}], "params": {"top_k": 5, "steps": 2}}'


def text_name(name: str) -> str:
    """Return the name of the model for people that belongs to a registered model of vectors."""
    return f"{name}-text"


def register_text_once(model_id: str, version: ModelVersion) -> None:
    """Register a LoggedModel for people as the text version of a version, unless there is one.

    It gets no alias here, see `follow_aliases`.

    Args:
        model_id: a LoggedModel of the same files.
        version: of the model of vectors.

    Raises:
        RegistryError: the model does not exist or holds no weights.
    """
    client, name, number = mlflow.MlflowClient(), text_name(version.name), str(version.version)
    if _text_version_of(client, name, number) is not None:
        return
    text = register_best(model_id, name=name, alias=None, tags={VECTOR_VERSION: number})
    description = (
        f"{version.name} version {number}, asked in words: chains of concepts in, the next "
        "concepts out, each with its cosine to the predicted vector. A request, in JSON:\n\n"
        f"    {EXAMPLE}\n\nEach step reads the best concept of the step before it."
    )
    client.update_model_version(name, text.version, description)


def follow_aliases(name: str = MODEL_NAME) -> dict[str, str | None]:
    """Give each alias of the model of vectors to the text version that belongs to its version.

    To be called after an alias was moved. It changes only what differs, so it can be called again
    after it was interrupted. An alias whose version has no text version is taken away from the
    model for people, so that a name never answers by another model than it says.

    Args:
        name: of the model of vectors.

    Returns:
        For each alias of the model of vectors, the number of the text version, or None.

    Raises:
        EvidenceError: a text version does not hold the files of the version that it belongs to; no
            alias was moved to it.
        RegistryError: the store cannot be read.
    """
    client, for_people = mlflow.MlflowClient(), text_name(name)
    try:
        wanted = dict(client.get_registered_model(name).aliases)
        texts = {a: _text_version_of(client, for_people, str(n)) for a, n in wanted.items()}
        names = client.search_registered_models(f"name = '{for_people}'")
        found = dict(client.get_registered_model(for_people).aliases) if names else {}
    except MlflowException as error:
        raise RegistryError(f"{name}: {first_line(error)}") from error
    for alias, text in texts.items():
        if text is not None and str(found.get(alias)) != text:
            _require_same_files(name, alias, str(wanted[alias]), text)
            client.set_registered_model_alias(for_people, alias, text)
    for alias in found:
        if texts.get(alias) is None:
            client.delete_registered_model_alias(for_people, alias)
    return texts


def _text_version_of(client: mlflow.MlflowClient, for_people: str, number: str) -> str | None:
    """The number of the newest text version of a version of the model of vectors, or None."""
    versions = client.search_model_versions(
        f"name = '{for_people}' AND tags.{VECTOR_VERSION} = '{number}'"
    )
    return str(max(int(v.version) for v in versions)) if versions else None


def _require_same_files(name: str, alias: str, number: str, text: str) -> None:
    """Compare the manifests of two versions; each one has the digests of its version's files.

    A text version compares its files with its manifest when it is loaded.
    """
    ours, theirs = (
        _manifest(f"models:/{model}/{of}")
        for model, of in ((name, number), (text_name(name), text))
    )
    if ours != theirs:
        raise EvidenceError(
            "text-changed",
            f"{text_name(name)} version {text} says that it belongs to {name} version "
            f"{number}, but its {MANIFEST} is another one; the alias {alias} was not moved to it. "
            "Delete that text version, or train again",
        )


def _manifest(uri: str) -> bytes:
    with tempfile.TemporaryDirectory() as scratch:
        try:
            path = mlflow.artifacts.download_artifacts(
                artifact_uri=f"{uri}/artifacts/{MANIFEST}", dst_path=scratch
            )
            return Path(path).read_bytes()
        except (MlflowException, OSError) as error:
            raise EvidenceError(
                "manifest-missing", f"{uri} has no {MANIFEST}: {first_line(error)}"
            ) from error
