"""Opening a trained model together with the bank that names what it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.errors import JobError, RegistryError
from ocp_mamba.evaluation.gates import require_one_encoder
from ocp_mamba.jobs.common import Log
from ocp_mamba.jobs.open_model import (
    BASELINE_PREFIX,
    MODELS_PREFIX,
    RUNS_PREFIX,
)
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.bundle import CHECKPOINT, EVALUATION, MANIFEST, read_bundle, read_concepts
from ocp_mamba.tracking.registry import (
    CANDIDATE,
    CHAMPION,
    MODEL_NAME,
    version_artifacts,
    version_of_alias,
)
from ocp_mamba.tracking.store import use_store

if TYPE_CHECKING:
    from ocp_mamba.serving.text import TextPredictor


@dataclass(frozen=True)
class OpenedModel:
    """A model, and the concepts that name its predictions.

    Attributes:
        name: of the registered model, or the path of the file.
        version: the registered version's number; the address that was given where it has none.
        model: in evaluation mode, on the CPU.
        encoder: identity of the encoder of the vectors that it was trained on.
        texts: (n_concepts,), or None where it came without a bank.
        bank: float32 (n_concepts, 768), or None.
    """

    name: str
    version: str
    model: OCPMambaLVM
    encoder: Mapping[str, object]
    texts: np.ndarray | None = None
    bank: np.ndarray | None = None

    def text_predictor(self, encoder: str | None = None) -> TextPredictor:
        """Return what answers in words.

        Args:
            encoder: name or folder of an encoder of texts that are not in the bank.

        Raises:
            JobError: the model came without a bank.
            EncoderError: the encoder cannot be loaded, or is not the one of the bank's vectors.
        """
        from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder
        from ocp_mamba.serving.text import TextPredictor

        if self.bank is None or self.texts is None:
            raise JobError(
                f"{self.name} {self.version}: has no bank of concepts, which gives texts their "
                "vectors; name the dataset file that it was trained on: --data"
            )
        opened = SentenceTransformerEncoder(encoder) if encoder else None
        return TextPredictor(
            self.model, self.bank, self.texts, encoder=opened, identity=dict(self.encoder)
        )


def default_model(log: Log) -> str:
    """Return the address of the champion, or of the newest candidate where there is no champion.

    Args:
        log: told when it is not the champion.

    Raises:
        JobError: there is neither.
        RegistryError: the store cannot be read.
    """
    store = use_store()
    for alias in (CHAMPION, CANDIDATE):
        version = version_of_alias(alias)
        if version is None:
            continue
        if alias != CHAMPION:
            log(
                f"NOTE: {MODEL_NAME} has no champion yet. This is version {version}, the "
                f"{alias}: the last training, which nobody has promoted."
            )
        return f"{MODELS_PREFIX}{MODEL_NAME}@{alias}"
    raise JobError(
        f"the store {store} has no registered {MODEL_NAME}; train one (ocp-mamba train), set "
        "MLFLOW_TRACKING_URI to the store that has it, or name a file: --model outputs/model.pt "
        "--data FILE"
    )


def open_model(address: str, data: Dataset | Path | None = None) -> OpenedModel:
    """Open a registered version or a ``.pt`` file, with its bank.

    Args:
        address: ``models:/…``, or the path of a ``.pt``.
        data: a dataset whose bank is used; None for the version's own bank.

    Raises:
        JobError: it is a baseline or a run's file, which this does not open.
        RegistryError, CheckpointError: it cannot be loaded.
        EvidenceError: a file of the version is not the one that its training wrote.
        DatasetError: the data cannot be read.
        EncoderMismatchError: the bank's vectors are of another encoder than the model's.
    """
    if address.startswith((BASELINE_PREFIX, RUNS_PREFIX)):
        raise JobError(
            f"{address}: a registered version (models:/NAME@ALIAS) or the .pt file of an "
            "OCPMambaLVM is wanted; `ocp-mamba evaluate` also takes baselines and files of runs"
        )
    dataset = load_dataset(data) if isinstance(data, Path) else data
    if not address.startswith(MODELS_PREFIX):
        checkpoint = load_checkpoint(address)
        opened = OpenedModel(address, "", checkpoint.build_model(), checkpoint.encoder)
        return opened if dataset is None else _with_bank(opened, dataset)
    use_store()
    name, version = _name_and_version(address)
    exact = f"{MODELS_PREFIX}{name}/{version}" if version else address
    with version_artifacts(exact) as folder:
        if dataset is not None and not (folder / MANIFEST).exists():  # of an earlier version
            checkpoint = load_checkpoint(folder / CHECKPOINT)
        else:
            checkpoint = read_bundle(folder).checkpoint
        opened = OpenedModel(name, version, checkpoint.build_model(), checkpoint.encoder)
        if dataset is not None:
            return _with_bank(opened, dataset)
        texts, bank = read_concepts(folder / EVALUATION)
        return replace(opened, texts=texts, bank=bank)


def _with_bank(opened: OpenedModel, dataset: Dataset) -> OpenedModel:
    require_one_encoder(opened.name, opened.encoder, dataset)
    return replace(opened, texts=dataset.texts, bank=dataset.bank)


def _name_and_version(address: str) -> tuple[str, str]:
    """The registered model and the version's number, which an alias points to; or an id and "".

    Raises:
        RegistryError: no version has the alias.
    """
    name = address.removeprefix(MODELS_PREFIX)
    if "@" not in name:
        model, _, version = name.rpartition("/")
        return (model, version) if model else (name, "")
    name, alias = name.split("@", 1)
    version = version_of_alias(alias, name) or ""
    if not version:
        raise RegistryError(f"{address}: no version of {name} has the alias {alias}")
    return name, version
