"""Registered versions: found by number or alias, downloaded, given their tags and their card."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from ocp_mamba.errors import EvidenceError, first_line
from ocp_mamba.tracking.registry.aliases import aliases_of
from ocp_mamba.tracking.tags import MAX_TAG_CHARACTERS

MAX_CARD_CHARACTERS = 5000
"""MLflow's column for a version's description holds no more."""


def find_version(name: str, which: str) -> ModelVersion:
    """Return a version of a registered model.

    Args:
        name: of the registered model.
        which: a number, or an alias.

    Raises:
        EvidenceError: ``version-missing``, there is none, or it was deleted.
        RegistryError: there is no such registered model.
    """
    aliases, which = aliases_of(name), str(which)
    number = which if which.isdecimal() else aliases.get(which)
    if number is None:
        known = ", ".join(f"{alias} (version {v})" for alias, v in sorted(aliases.items()))
        raise EvidenceError(
            "version-missing", f"{name} has no alias {which!r}; it has {known or 'none'}"
        )
    try:
        return mlflow.MlflowClient().get_model_version(name, number)
    except MlflowException as error:
        raise EvidenceError(
            "version-missing", f"{name} version {number}: {first_line(error)}"
        ) from error


@contextmanager
def downloaded(version: ModelVersion) -> Iterator[Path]:
    """Copy a version's files to this machine for the block, which gets their folder.

    Raises:
        EvidenceError: ``files-missing``, the store does not have them.
    """
    uri = f"models:/{version.name}/{version.version}"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=scratch)
        except (MlflowException, OSError) as error:
            raise EvidenceError(
                "files-missing", f"{uri}: no files to download: {first_line(error)}"
            ) from error
        if not any(Path(folder).iterdir()):
            raise EvidenceError("files-missing", f"{uri}: {version.source} is empty or gone")
        yield Path(folder)


def run_tags(run_id: str) -> Mapping[str, str] | None:
    """Return the tags of a run, or None where the store does not know it."""
    try:
        tags: Mapping[str, str] = mlflow.MlflowClient().get_run(run_id).data.tags
    except MlflowException:
        return None
    return tags


def tag_version(version: ModelVersion, tags: Mapping[str, str]) -> None:
    """Set tags of a version; a long one is cut."""
    client = mlflow.MlflowClient()
    for key, value in tags.items():
        client.set_model_version_tag(version.name, version.version, key, value[:MAX_TAG_CHARACTERS])


def describe_version(version: ModelVersion, card: str) -> None:
    """Replace the Markdown description of a version; one that is too long is cut at a line."""
    if len(card) > MAX_CARD_CHARACTERS:
        note = "\n\n… cut here: MLflow keeps no more."
        card = card[: MAX_CARD_CHARACTERS - len(note)].rsplit("\n", 1)[0] + note
    mlflow.MlflowClient().update_model_version(version.name, version.version, card)
