"""Whether a registered version is what its training wrote: files, tags, run and weights agree.

Each check that fails raises an `EvidenceError` whose name ``docs/registry.md`` explains. The checks
trust nothing that stands in one place only: the manifest has the digests of the files, the version
and its run have the digest of the manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.data.analysis.frozen import content_of, fingerprint_of_whole
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import EvidenceError
from ocp_mamba.evaluation import gates
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.bundle import (
    CHECKPOINT,
    RECORDED_EXAMPLES,
    Bundle,
    read_bundle,
)
from ocp_mamba.serving.served_files import require_served_files
from ocp_mamba.system.files import sha256_of
from ocp_mamba.tracking.registry import VERSION_METRICS, ModelVersion
from ocp_mamba.tracking.registry.versions import run_tags
from ocp_mamba.tracking.tags import BUNDLE, DIGEST

ARTIFACTS = "artifacts"
PREDICTION_TOLERANCE = 1e-5
"""Largest difference of a component of a unit row."""

ENCODER_KEYS = ("name", "weight_hash")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Evidence:
    """A version whose files, tags and weights agree.

    Attributes:
        bundle: its evidence.
        model: in evaluation mode.
        dataset: the evaluation set.
    """

    bundle: Bundle
    model: OCPMambaLVM
    dataset: Dataset


def check_evidence(version: ModelVersion, folder: Path) -> Evidence:
    """Check a version's files against each other, its tags and its run; returns what they hold.

    Args:
        version: with its tags.
        folder: its files, downloaded.

    Raises:
        EvidenceError: the first fault that was found.
    """
    bundle = open_bundle(version, folder)
    _require_tags(version, bundle.manifest)
    require_served_files(folder, bundle.manifest["code_sha256"])
    model = _open_model(bundle)
    dataset = bundle.evaluation_set
    _require_evaluation_set(bundle, model, dataset)
    _require_predictions(bundle, model, dataset)
    return Evidence(bundle, model, dataset)


def open_bundle(version: ModelVersion, folder: Path) -> Bundle:
    """Return a version's bundle, after its digests: of files, of the manifest, and in the tags.

    Raises:
        EvidenceError: a file is missing or changed, or a tag has another digest.
    """
    files = folder / ARTIFACTS
    weights = files / CHECKPOINT
    if not weights.is_file():
        raise EvidenceError(
            "weights-missing",
            f"{version.name} version {version.version} has no {ARTIFACTS}/{CHECKPOINT}: it was not "
            "registered by ocp-mamba, or has metrics alone",
        )
    _require_tag(version, DIGEST, sha256_of(weights), "weights-changed")
    bundle = read_bundle(files)
    _require_tag(version, BUNDLE, bundle.digest, "manifest-changed")
    return bundle


def _require_tag(version: ModelVersion, tag: str, found: str, fault: str) -> None:
    said = version.tags.get(tag, "nothing")
    if said != found:
        raise EvidenceError(fault, f"the version's tag {tag} says {said}, the file has {found}")


def expected_tags(manifest: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return the tags that a version has by its manifest, each with the fault of another value."""
    encoder, metrics = manifest["encoder"], manifest["metrics"]
    values = {name: metrics[name]["value"] for name in VERSION_METRICS if name in metrics}
    values["val_next_vec_cosine"] = manifest.get("training", {}).get("best_cosine")
    return {
        "run_id": (str(manifest["run_id"]), "other-run"),
        "epoch": (str(manifest["epoch"]), "other-run"),
        "dataset.fingerprint": (str(manifest["dataset_fingerprint"]), "other-data"),
        **{
            f"encoder.{key}": (str(encoder.get(key, UNKNOWN)), "encoder-mismatch")
            for key in ENCODER_KEYS
        },
        **{k: (f"{v:.6f}", "scores-edited") for k, v in values.items() if v is not None},
        **{f"gate.{k}": (str(v), "gates-edited") for k, v in manifest["gates"].items()},
    }


def _require_tags(version: ModelVersion, manifest: Mapping[str, Any]) -> None:
    """Refuse tags of the version, or of its run, that say something else than the manifest."""
    if version.run_id != manifest["run_id"]:
        raise EvidenceError(
            "other-run", f"the version is of run {version.run_id}, its manifest of another one: "
            f"{manifest['run_id']}",
        )  # fmt: skip
    for tag, (wanted, fault) in expected_tags(manifest).items():
        said = version.tags.get(tag, "nothing")
        if said != wanted:
            raise EvidenceError(
                fault, f"the version's tag {tag} says {said}, its manifest {wanted}"
            )
    run = run_tags(manifest["run_id"])
    if run is None:
        raise EvidenceError(
            "run-missing",
            f"run {manifest['run_id']} is gone, and with it the second record of the evidence",
        )
    if run.get(BUNDLE) != version.tags[BUNDLE]:
        raise EvidenceError(
            "manifest-changed",
            f"the run's tag {BUNDLE} says {run.get(BUNDLE, 'nothing')}, the version's "
            f"{version.tags[BUNDLE]}",
        )
    for tag in (t for t in {**version.tags, **run} if t.startswith("gate.")):
        if version.tags.get(tag) != run.get(tag):
            raise EvidenceError(
                "gates-edited",
                f"the version's tag {tag} says {version.tags.get(tag, 'nothing')}, the run's "
                f"{run.get(tag, 'nothing')}",
            )


def _open_model(bundle: Bundle) -> OCPMambaLVM:
    """The model, if its weights are finite and of the config, data and encoder of the manifest."""
    checkpoint, manifest = bundle.checkpoint, bundle.manifest
    config = json.loads(json.dumps(asdict(checkpoint.model_config)))
    other = {k: v for k, v in manifest["model_config"].items() if config.get(k) != v}
    if other:
        raise EvidenceError(
            "config-differs",
            f"{CHECKPOINT} has { ({k: config.get(k) for k in other}) }, the manifest says {other}",
        )
    if checkpoint.dataset_fingerprint != manifest["dataset_fingerprint"]:
        raise EvidenceError(
            "other-data",
            f"{CHECKPOINT} was trained on dataset {checkpoint.dataset_fingerprint}, the manifest "
            f"says {manifest['dataset_fingerprint']}",
        )
    if dict(checkpoint.encoder) != dict(manifest["encoder"]):
        raise EvidenceError(
            "encoder-mismatch",
            f"{CHECKPOINT} was trained on vectors of {checkpoint.encoder}, the manifest says "
            f"{manifest['encoder']}",
        )
    return checkpoint.build_model()


def _require_evaluation_set(bundle: Bundle, model: OCPMambaLVM, dataset: Dataset) -> None:
    """Refuse an evaluation set that is another one than the training's, or not the model's."""
    manifest = bundle.manifest
    found = content_of(dataset).fingerprint
    if found != manifest["evaluation_fingerprint"]:
        raise EvidenceError(
            "evaluation-changed",
            f"the evaluation set has the fingerprint {found}, the manifest says "
            f"{manifest['evaluation_fingerprint']}",
        )
    if bundle.is_sample and fingerprint_of_whole(dataset) != manifest["dataset_fingerprint"]:
        raise EvidenceError("other-data", "the evaluation set is a sample of another dataset")
    bank = dataset.meta.get("encoder", {})
    if gates.same_encoder(bundle.checkpoint.encoder, bank) is False:
        raise EvidenceError(
            "encoder-mismatch",
            f"the model was trained on vectors of {bundle.checkpoint.encoder}, those of the "
            f"evaluation set are of {bank}",
        )
    if dataset.n_concepts != manifest["pool_size"]:
        raise EvidenceError(
            "pool-changed",
            f"retrieval searched {manifest['pool_size']:,} concepts at training, the evaluation "
            f"set has {dataset.n_concepts:,}",
        )
    if dataset.n_examples("val") == 0:
        raise EvidenceError("evaluation-empty", "the evaluation set has no val sequences")
    relations = model.config.relations
    if (model.d_tmd and dataset.chain_tmd is None) or (
        relations and relations != dataset.relations
    ):
        raise EvidenceError(
            "conditions-missing",
            "the model takes TMD vectors or relations that the evaluation set does not have",
        )


def _require_predictions(bundle: Bundle, model: OCPMambaLVM, dataset: Dataset) -> None:
    """Refuse a model that does not give the predictions that were recorded at training."""
    recorded = bundle.recorded
    wanted = min(RECORDED_EXAMPLES, dataset.n_examples("val"))
    shape = (len(recorded.lengths), dataset.bank.shape[1])
    if len(recorded.lengths) < wanted or recorded.predictions.shape != shape:
        raise EvidenceError(
            "recorded-incomplete",
            f"predictions {recorded.predictions.shape} of {len(recorded.lengths)} contexts were "
            f"recorded, at least {wanted} are wanted",
        )
    if recorded.contexts.max() >= dataset.n_concepts:
        raise EvidenceError("recorded-incomplete", "a recorded context is not of the bank")
    try:
        now = recorded.predict(model, dataset.bank)
    except (ValueError, RuntimeError, IndexError) as error:
        raise EvidenceError("recorded-incomplete", f"a context does not fit: {error}") from error
    worst = float(np.abs(now - recorded.predictions).max())
    if not worst <= PREDICTION_TOLERANCE:
        raise EvidenceError(
            "predictions-differ",
            f"the model's predictions are off by {worst:.2g} from those recorded at training, "
            f"{PREDICTION_TOLERANCE:g} at most is wanted",
        )
