"""Copies of a registered version that are edited before they are registered, as a forger would."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities.model_registry import ModelVersion
from trainings import TINY, seeded

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.gates import evaluate_gates
from ocp_mamba.jobs.baselines import evaluate_cheap
from ocp_mamba.jobs.open_model import what_it_learnt
from ocp_mamba.jobs.promotion.checks import expected_tags
from ocp_mamba.jobs.promotion.evidence import headline_figures
from ocp_mamba.jobs.promotion.promote import REFUSED, PromotionJob, run_promotion
from ocp_mamba.model.checkpoint import load_checkpoint, load_model, write_checkpoint
from ocp_mamba.serving.bundle import (
    CHECKPOINT,
    EVALUATION,
    MANIFEST,
    RECORDED,
    write_bundle,
)
from ocp_mamba.system.files import sha256_of
from ocp_mamba.tracking.registry.aliases import aliases_of
from ocp_mamba.tracking.registry.versions import find_version
from ocp_mamba.tracking.tags import BUNDLE, DIGEST


@dataclass
class Workshop:
    """A store with one genuine version, which passes every gate, and its files."""

    store: str
    folder: Path
    genuine: ModelVersion
    files: Path
    made: int = 0

    def copy(self) -> Forgery:
        """A copy of the genuine version."""
        self.made += 1
        return Forgery.of(self.genuine, self.files, self.folder / f"copy-{self.made}")


@dataclass
class Forgery:
    """A copy of a version.

    Attributes:
        folder: its files; edit them.
        manifest: its manifest; `seal` writes it.
        tags: of the version.
        run_id: of the run that it claims to be of.
    """

    folder: Path
    manifest: dict[str, Any]
    tags: dict[str, str]
    run_id: str
    run_tags: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, version: ModelVersion, files: Path, folder: Path) -> Forgery:
        """Copy a version, of which ``files`` are the downloaded files."""
        shutil.copytree(files, folder)
        manifest = json.loads((folder / "artifacts" / MANIFEST).read_text())
        run = mlflow.MlflowClient().get_run(version.run_id)
        return cls(folder, manifest, dict(version.tags), version.run_id, dict(run.data.tags))

    def file(self, name: str) -> Path:
        """A file beside the weights."""
        return self.folder / "artifacts" / name

    def weights(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the content of the ``.pt``."""
        content = torch.load(self.file(CHECKPOINT), weights_only=True)
        edit(content)
        write_checkpoint(self.file(CHECKPOINT), content.pop("kind"), content)

    def evaluation(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit the fields of the evaluation set; the manifest gets its new fingerprint."""
        old = Dataset.load(self.file(EVALUATION))
        fields = {name: getattr(old, name) for name in Dataset.__dataclass_fields__}
        edit(fields)
        new = Dataset(**fields)
        new.save(self.file(EVALUATION))
        self.manifest["evaluation_fingerprint"] = new.fingerprint

    def recorded(self, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
        """Edit the recorded predictions."""
        with np.load(self.file(RECORDED)) as arrays:
            content = dict(arrays)
        edit(content)
        np.savez(self.file(RECORDED), **content)

    def remake(self, evaluated_on: Dataset) -> None:
        """Write the whole bundle again, as a training would that ended in these weights."""
        dataset, index = evaluated_on, BankIndex(evaluated_on.bank)
        model = load_model(self.file(CHECKPOINT))
        learnt = what_it_learnt("model", load_checkpoint(self.file(CHECKPOINT)).learnt)
        evaluation = evaluate(model, dataset, "val", name="model", index=index, trained_on=learnt)
        training = self.manifest["training"]
        verdicts = evaluate_gates(
            evaluation,
            evaluate_cheap(dataset, index, learnt),
            trends=training["trends"],
            train_minutes=training["minutes"],
            inference_ready=True,
            leaks=False,
            same_encoder=True,
        )
        kept = {key: self.manifest[key] for key in ("run_id", "epoch", "metrics_version")}
        facts = {"metrics": headline_figures(evaluation), "gates": verdicts, "training": training}
        pool = {"pool_size": evaluation.pool_size}
        write_bundle(self.folder / "artifacts", self.file(CHECKPOINT), dataset, kept | facts | pool)
        self.manifest = json.loads(self.file(MANIFEST).read_text())

    def write_manifest(self) -> None:
        """Write the manifest as it is, and its digest into the version's tags."""
        self.file(MANIFEST).write_text(json.dumps(self.manifest))
        self.tags[BUNDLE] = sha256_of(self.file(MANIFEST))

    def seal(self) -> None:
        """Make all records agree: digests in the manifest, tags, and a run of its own."""
        client = mlflow.MlflowClient()
        experiment = client.get_run(self.run_id).info.experiment_id
        self.run_id = client.create_run(experiment).info.run_id
        self.manifest["run_id"] = self.run_id
        for name in self.manifest["files"]:
            if self.file(name).exists():
                self.manifest["files"][name] = sha256_of(self.file(name))
        self.write_manifest()
        self.tags[DIGEST] = sha256_of(self.file(CHECKPOINT))
        self.tags |= {tag: value for tag, (value, _) in expected_tags(self.manifest).items()}
        kept = (BUNDLE, *(tag for tag in self.tags if tag.startswith("gate.")))
        client.log_batch(
            self.run_id, tags=[mlflow.entities.RunTag(tag, self.tags[tag]) for tag in kept]
        )

    def register(self, name: str) -> ModelVersion:
        """Register the copy as the next version; the registered model is made if need be."""
        client = mlflow.MlflowClient()
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        return client.create_model_version(name, str(self.folder), self.run_id, tags=self.tags)


NAME = "frauds"
"""The registered model that frauds are versions of."""


def refused(version: ModelVersion, fault: str) -> None:
    """Assert that a version is refused by a name, and that nothing else has changed."""
    before = aliases_of(version.name)
    said: list[str] = []
    outcome = run_promotion(PromotionJob(version.version, version.name), said.append)
    assert outcome.verdict == REFUSED, outcome.card
    assert outcome.faults[0] == fault, outcome.card
    assert aliases_of(version.name) == before
    kept = find_version(version.name, version.version)
    assert kept.tags["promotion.faults"].split(", ")[0] == fault
    assert f"- {fault}: " in (kept.description or "")


Edit = Callable[[Forgery], None]
"""What a forger does to a copy."""


def swap_weights(forgery: Forgery) -> None:
    forgery.weights(lambda content: content.update(state_dict=seeded(TINY, 1).state_dict()))


def cut(name: str) -> Edit:
    def edit(forgery: Forgery) -> None:
        path = forgery.file(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    return edit


def without(name: str) -> Edit:
    return lambda forgery: forgery.file(name).unlink()


def nudged(arrays: dict[str, np.ndarray]) -> None:
    arrays["predictions"] = arrays["predictions"] + np.float32(1e-4)


def weights_of_other_data(forgery: Forgery) -> None:
    forgery.weights(lambda content: content.update(dataset_fingerprint="f" * 64))
