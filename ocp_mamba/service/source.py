"""Where a service's model comes from: a registered version, by number or alias, or a ``.pt`` file.

Only the ``.pt`` and the dataset file of a version are read. Its own copy of the package is not run.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import mlflow
import numpy as np
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME

from ocp_mamba.data.load import load_dataset
from ocp_mamba.embeddings.encoders import Encoder
from ocp_mamba.errors import CheckpointError, EvidenceError, RegistryError, first_line
from ocp_mamba.evaluation.gates import require_one_encoder
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint
from ocp_mamba.service.version import Version
from ocp_mamba.serving.bundle import CHECKPOINT, EVALUATION, MANIFEST, read_bundle, read_concepts
from ocp_mamba.serving.pyfunc import signature
from ocp_mamba.serving.text import TextPredictor
from ocp_mamba.system.files import sha256_of
from ocp_mamba.tracking.store import STORE_FAILURES

PREFIX = "models:/"
Concepts = tuple[np.ndarray, np.ndarray]
"""Texts ``(n,)`` and their unit rows, float32 ``(n, 768)``."""

LOAD_FAILURES: tuple[type[Exception], ...] = (CheckpointError, EvidenceError, *STORE_FAILURES)

DIGITS = 12
"""Of a file's digest, which stand for its version."""


class Source(Protocol):
    """A place to load versions from."""

    follows: bool
    """Whether `current` may change."""

    def __str__(self) -> str:
        """Return how a person names the place."""

    def current(self) -> str:
        """Return the version that is to serve now.

        Raises:
            RegistryError: there is none, or the registry cannot be asked.
        """

    def load(self, version: str) -> Version:
        """Return a version, loaded and warm.

        Raises:
            OcpMambaError: it cannot be loaded.
        """


@dataclass(frozen=True)
class RegisteredSource:
    """``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Attributes:
        uri: as a person gives it.
        data: the dataset file of versions that bring none.
        encoder: encodes texts that are not in the bank.
    """

    uri: str
    data: Path | None = None
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        """Refuse an address of another form.

        Raises:
            RegistryError: it has neither an alias nor a version.
        """
        if not self.uri.startswith(PREFIX) or not (self.follows or "/" in self._name_and_version):
            raise RegistryError(
                f"{self.uri}: wanted models:/NAME@ALIAS or models:/NAME/VERSION, or a .pt file"
            )

    @property
    def _name_and_version(self) -> str:
        return self.uri.removeprefix(PREFIX)

    @property
    def follows(self) -> bool:
        """Whether it is an alias, which may be moved."""
        return "@" in self._name_and_version

    @property
    def name(self) -> str:
        """The registered model."""
        return self._name_and_version.split("@")[0].rsplit("/", 1 - self.follows)[0]

    def __str__(self) -> str:
        """Return the address."""
        return self.uri

    def current(self) -> str:
        """Return the version's number; see `Source.current`."""
        if not self.follows:
            return self._name_and_version.rsplit("/", 1)[1]
        alias = self._name_and_version.split("@", 1)[1]
        try:
            found = mlflow.MlflowClient().get_model_version_by_alias(self.name, alias)
        except STORE_FAILURES as error:
            raise RegistryError(
                f"{self.uri}: {first_line(error)}. `ocp-mamba promote` makes a champion; "
                f"{PREFIX}{self.name}@candidate is the last training"
            ) from error
        return str(found.version)

    def load(self, version: str) -> Version:
        """Return a version, read from a copy of its files; see `Source.load`."""
        uri = f"{PREFIX}{self.name}/{version}"
        with tempfile.TemporaryDirectory(prefix="ocp-mamba-serve-") as scratch:
            try:
                # not the whole version: its copy of the package has hundreds of files
                folder = Path(_fetched(f"{uri}/artifacts", scratch))
                meta = Model.load(_fetched(f"{uri}/{MLMODEL_FILE_NAME}", scratch))
                if (folder / MANIFEST).is_file():  # not in those of earlier versions
                    read_bundle(folder)  # compares each file with its digest
                checkpoint = load_checkpoint(folder / CHECKPOINT)
            except LOAD_FAILURES as error:
                raise RegistryError(f"{uri}: no model to load: {first_line(error)}") from error
            concepts = self._concepts(folder, checkpoint)
            return _version(self.name, version, checkpoint, concepts, self.encoder, meta)

    def _concepts(self, folder: Path, checkpoint: Checkpoint) -> Concepts | None:
        """The bank of a version: that of the dataset file given, else its own."""
        if self.data is None and (folder / EVALUATION).is_file():
            return read_concepts(folder / EVALUATION)
        return _concepts_of(self.data, str(self), checkpoint)


@dataclass(frozen=True)
class FileSource:
    """A ``.pt`` file, with or without the dataset file that it was trained on."""

    path: Path
    data: Path | None = None
    encoder: Encoder | None = None
    follows: bool = False

    def __str__(self) -> str:
        """Return the path."""
        return str(self.path)

    def current(self) -> str:
        """Return the first digits of the file's SHA-256; see `Source.current`."""
        try:
            return sha256_of(self.path)[:DIGITS]
        except OSError as error:
            raise RegistryError(f"{self.path}: {error.strerror or error}") from error

    def load(self, version: str) -> Version:
        """Return the file's model; see `Source.load`."""
        checkpoint = load_checkpoint(self.path)
        concepts = _concepts_of(self.data, str(self.path), checkpoint)
        meta = Model(signature=signature(checkpoint.model_config))
        return _version(self.path.stem, version, checkpoint, concepts, self.encoder, meta)


def _fetched(uri: str, folder: str) -> str:
    """The path of a copy of a part of a version."""
    path: str = mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder)
    return path


def _concepts_of(path: Path | None, uri: str, checkpoint: Checkpoint) -> Concepts | None:
    """The texts and vectors of a dataset file, if one is given.

    Raises:
        DatasetError: it cannot be read.
        EncoderMismatchError: its vectors are of another encoder than the model was trained on.
    """
    if path is None:
        return None
    dataset = load_dataset(path)
    require_one_encoder(uri, checkpoint.encoder, dataset)
    return dataset.texts, np.ascontiguousarray(dataset.bank, dtype=np.float32)


def _version(
    name: str,
    version: str,
    checkpoint: Checkpoint,
    concepts: Concepts | None,
    encoder: Encoder | None,
    meta: Model,
) -> Version:
    """A loaded and warm version."""
    model = checkpoint.build_model()
    text = None
    if concepts is not None:
        texts, bank = concepts
        identity = checkpoint.encoder
        text = TextPredictor(model, bank, texts, encoder=encoder, identity=identity)
    loaded = Version(name, version, model, text, meta)
    try:
        loaded.warm_up()
    except ValueError as error:
        raise CheckpointError(f"{name} version {version}: {error}") from error
    return loaded
