"""The bundle of a registered version: the evidence for its metrics, in files beside its weights.

================== =================================================================================
``evaluation.npz`` the evaluation set, a dataset file without the test chains; also the bank of
                   texts and vectors of the served model
``sample.npz``     only where the evaluation set is a sample of a larger dataset: what its examples
                   share with the whole
``recorded.npz``   some val examples, and what the model predicted for them at training
``manifest.json``  digests of the other files, metrics, gates, and what the model is
================== =================================================================================

A scoring server imports this module in an environment of numpy, torch and mlflow alone. So the
functions that need the package's ``data`` import it themselves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ocp_mamba.errors import CheckpointError, DatasetError, EvidenceError
from ocp_mamba.kernels.cpu import kernels_off
from ocp_mamba.model.base import conditions
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.system.files import atomic_write, sha256_of

if TYPE_CHECKING:
    from ocp_mamba.data.dataset import Dataset

FORMAT_VERSION = 1
"""Version of the manifest's keys; a bundle with another one is refused."""

CHECKPOINT = "model.pt"
EVALUATION, SAMPLE, RECORDED = "evaluation.npz", "sample.npz", "recorded.npz"
MANIFEST = "manifest.json"
"""Names of the files in the model's ``artifacts`` folder."""

PACKAGE = Path(__file__).resolve().parents[1]
"""This package, of which every registered model has a copy."""

REQUIRED = (CHECKPOINT, EVALUATION, RECORDED)
"""Files that every manifest has a digest of."""

KEYS = (
    "format_version",
    "files",
    "code_sha256",
    "run_id",
    "epoch",
    "dataset_fingerprint",
    "evaluation_fingerprint",
    "encoder",
    "model_config",
    "metrics_version",
    "pool_size",
    "metrics",
    "gates",
)
"""Keys that a manifest must have."""

RECORDED_EXAMPLES = 32


@dataclass(frozen=True)
class Recorded:
    """Some examples of the evaluation set, and what the model predicted for them at training.

    Attributes:
        contexts: int32 ``(n, L)``, rows of the bank, right-padded by -1.
        lengths: int64 ``(n,)``, valid positions of each context.
        predictions: float32 ``(n, 768)``, unit rows.
        tmd: float32 ``(n, 16)``, or None for a model without TMD.
        relations: float32 ``(n, L, 2)``, or None for a model without relations.
    """

    contexts: np.ndarray
    lengths: np.ndarray
    predictions: np.ndarray
    tmd: np.ndarray | None = None
    relations: np.ndarray | None = None

    def predict(self, model: OCPMambaLVM, bank: np.ndarray) -> np.ndarray:
        """Return what a model predicts for the contexts, in plain torch, float32 ``(n, 768)``."""
        known = self.contexts >= 0
        vectors = torch.from_numpy(np.where(known[..., None], bank[self.contexts], np.float32(0)))
        given = conditions(model, _tensor(self.tmd), _tensor(self.relations))
        tmd = given.pop("tmd", None)
        with kernels_off(), torch.inference_mode():
            predicted = model(vectors, tmd, torch.from_numpy(self.lengths), **given)
        answer: np.ndarray = predicted.float().numpy()
        return answer


def _tensor(array: np.ndarray | None) -> torch.Tensor | None:
    return None if array is None else torch.from_numpy(array)


@dataclass(frozen=True)
class Bundle:
    """A bundle on the disk whose digests are right.

    Attributes:
        folder: holds the files, ``model.pt`` among them.
        manifest: the content of ``manifest.json``.
        digest: SHA-256 of ``manifest.json``, which the tag ``bundle.sha256`` repeats.
    """

    folder: Path
    manifest: Mapping[str, Any]
    digest: str

    @property
    def is_sample(self) -> bool:
        """Whether the evaluation set is a sample of a larger dataset."""
        return SAMPLE in self.manifest["files"]

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The content of the ``.pt``.

        Raises:
            EvidenceError: it cannot be read.
        """
        try:
            return load_checkpoint(self.folder / CHECKPOINT)
        except CheckpointError as error:
            raise EvidenceError("weights-unreadable", str(error)) from error

    @cached_property
    def evaluation_set(self) -> Dataset:
        """The evaluation set, a sample where the dataset was too large to be evaluated whole.

        Raises:
            EvidenceError: it cannot be read.
        """
        from ocp_mamba.data.analysis.frozen import load_evaluation_set

        try:
            return load_evaluation_set(self.folder / EVALUATION, self.folder / SAMPLE)
        except DatasetError as error:
            raise EvidenceError("evaluation-unreadable", str(error)) from error

    @cached_property
    def recorded(self) -> Recorded:
        """The recorded predictions.

        Raises:
            EvidenceError: they cannot be read.
        """
        path = self.folder / RECORDED
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return Recorded(**arrays)
        except Exception as error:  # a damaged file makes numpy and zipfile raise anything
            raise EvidenceError("recorded-unreadable", f"{path}: {error}") from error


def read_concepts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the bank out of an ``evaluation.npz`` without the package's ``data``.

    Returns:
        Texts, unicode ``(n,)``, and vectors, float32 ``(n, 768)`` unit rows.

    Raises:
        EvidenceError: the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            texts, bank = arrays["texts"], arrays["bank"].astype(np.float32)
    except Exception as error:  # a damaged file makes numpy and zipfile raise anything
        raise EvidenceError("evaluation-unreadable", f"{path}: {error}") from error
    return texts, bank / np.linalg.norm(bank, axis=1, keepdims=True)


def record(model: OCPMambaLVM, dataset: Dataset, examples: int = RECORDED_EXAMPLES) -> Recorded:
    """Predict some val examples, spread evenly over the split, in plain torch.

    Args:
        model: in evaluation mode, on the CPU.
        dataset: an evaluation set.
        examples: at most this many.
    """
    val = dataset.examples("val")
    chosen = np.unique(np.linspace(0, len(val.target) - 1, examples).astype(np.int64))
    lengths = val.position[chosen].astype(np.int64)
    starts = dataset.chain_offsets[val.chain[chosen]]
    step = np.arange(lengths.max())
    known = step < lengths[:, None]
    places = np.where(known, starts[:, None] + step, 0)
    contexts = np.where(known, dataset.chain_values[places], -1).astype(np.int32)
    tmd = relations = None
    if model.d_tmd and dataset.chain_tmd is not None:
        tmd = dataset.chain_tmd[val.chain[chosen]]
    if model.n_relations and (steps := dataset.steps(places)) is not None:
        relations = np.where(known[..., None], steps, np.float32(0))
    empty = np.zeros((len(chosen), dataset.bank.shape[1]), np.float32)
    asked = Recorded(contexts, lengths, empty, tmd, relations)
    return replace(asked, predictions=asked.predict(model, dataset.bank))


def write_bundle(
    folder: Path, checkpoint: Path, evaluated_on: Dataset, facts: Mapping[str, Any]
) -> list[Path]:
    """Write the bundle of a trained model into a folder, which is made where it does not exist.

    Args:
        folder: where to write.
        checkpoint: the ``.pt`` that is to be registered.
        evaluated_on: the dataset, or the sample, that the model was evaluated on.
        facts: further keys of the manifest: ``run_id``, ``epoch``, ``metrics_version``,
            ``pool_size``, ``metrics``, ``gates``, and others as wanted; all of it JSON.

    Returns:
        The files, the manifest last; `pyfunc.save_pyfunc` takes them.

    Raises:
        CheckpointError: the ``.pt`` cannot be read.
    """
    from ocp_mamba.data.analysis.frozen import content_of, evaluation_set, save_evaluation_set

    folder.mkdir(parents=True, exist_ok=True)
    saved = load_checkpoint(checkpoint)
    frozen = evaluation_set(evaluated_on)
    files = save_evaluation_set(frozen, folder / EVALUATION, folder / SAMPLE)
    recorded = record(saved.build_model(), frozen)
    arrays = {name: value for name, value in vars(recorded).items() if value is not None}
    with atomic_write(folder / RECORDED) as file:
        np.savez(file, **arrays)
    files.append(folder / RECORDED)
    manifest = {
        "format_version": FORMAT_VERSION,
        "files": {CHECKPOINT: sha256_of(checkpoint), **{p.name: sha256_of(p) for p in files}},
        "code_sha256": code_digest(PACKAGE),
        "dataset_fingerprint": saved.dataset_fingerprint,
        "evaluation_fingerprint": content_of(frozen).fingerprint,
        "encoder": saved.encoder,
        "model_config": asdict(saved.model_config),
        **facts,
    }
    with atomic_write(folder / MANIFEST) as file:
        file.write((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    return [*files, folder / MANIFEST]


def read_bundle(folder: Path) -> Bundle:
    """Read the manifest in a folder and compare each file with its digest.

    Args:
        folder: the ``artifacts`` folder of a registered version.

    Raises:
        EvidenceError: a file is missing or not the one that the manifest names, or the manifest is
            none, or of another format. The message names the file.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise EvidenceError(
            "manifest-missing",
            f"{path} does not exist: the version was registered without its evidence, by an "
            "earlier version of ocp-mamba or by hand; train again",
        )
    content = path.read_bytes()
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise EvidenceError("manifest-unreadable", f"{path}: not JSON ({error})") from error
    found = manifest.get("format_version") if isinstance(manifest, dict) else None
    if found != FORMAT_VERSION:
        raise EvidenceError(
            "manifest-format", f"{path}: format_version {found!r}, wanted {FORMAT_VERSION}"
        )
    missing = [key for key in KEYS if key not in manifest]
    missing += [f"files.{name}" for name in REQUIRED if name not in manifest.get("files", {})]
    if missing:
        raise EvidenceError("manifest-incomplete", f"{path}: lacks {', '.join(missing)}")
    for name, digest in manifest["files"].items():
        _require_digest(folder, name, str(digest))
    unlisted = [
        name for name in (SAMPLE,) if (folder / name).exists() and name not in manifest["files"]
    ]
    if unlisted:
        raise EvidenceError("file-unlisted", f"{folder / unlisted[0]} is not in {MANIFEST}")
    return Bundle(folder, manifest, hashlib.sha256(content).hexdigest())


FAULTS = {
    CHECKPOINT: "weights",
    EVALUATION: "evaluation",
    SAMPLE: "sample",
    RECORDED: "recorded",
}
"""First part of a fault's name, by file."""


def _require_digest(folder: Path, name: str, digest: str) -> None:
    """Refuse a file that is missing or has another content than the manifest says."""
    kind, path = FAULTS.get(name, "file"), folder / name
    if Path(name).name != name or not path.is_file():
        raise EvidenceError(f"{kind}-missing", f"{path} does not exist; {MANIFEST} names it")
    found = sha256_of(path)
    if found != digest:
        raise EvidenceError(
            f"{kind}-changed",
            f"{path} has SHA-256 {found[:12]}…, {MANIFEST} says {digest[:12]}…: the file was "
            "edited, swapped or cut after the training",
        )


def code_digest(package: Path) -> str:
    """Return one SHA-256 of a package's files, hex; what Python caches is left out."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            content = path.read_bytes()
            digest.update(f"{path.relative_to(package).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
