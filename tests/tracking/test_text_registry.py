"""The registered model for people: stored by a training, with the aliases of the other one."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from bundles import FACTS
from mlflow.entities.model_registry import ModelVersion
from tracked import train_tracked

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import EvidenceError
from ocp_mamba.serving.bundle import MANIFEST, write_bundle
from ocp_mamba.tracking import session
from ocp_mamba.tracking.operations import apply, model_entry, text_model_entry
from ocp_mamba.tracking.registry import MODEL_NAME
from ocp_mamba.tracking.registry.text import (
    VECTOR_VERSION,
    follow_aliases,
    register_text,
    text_model_name,
)

TEXT_MODEL_NAME = text_model_name()
NAMES = (MODEL_NAME, TEXT_MODEL_NAME)


@pytest.fixture
def versions(
    store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> tuple[ModelVersion, ModelVersion]:
    """A version and its text version, as a training registers them."""
    checkpoint = tmp_path / "model.pt"
    with session.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
        train_tracked(run, dataset, tiny_config, checkpoint, epochs=1)
        bundle = write_bundle(tmp_path / "bundle", checkpoint, dataset, FACTS)
        run.log_models(checkpoint, 1, bundle)
        version = run.register(1)
        assert version is not None
        return version, mlflow.MlflowClient().get_model_version(TEXT_MODEL_NAME, "1")


def aliases(name: str) -> dict[str, str]:
    return {a: str(v) for a, v in mlflow.MlflowClient().get_registered_model(name).aliases.items()}


def test_both_models_are_registered_with_the_same_files_and_alias(
    versions: tuple[ModelVersion, ModelVersion], dataset: Dataset
) -> None:
    version, text = versions
    assert (text.name, text.tags[VECTOR_VERSION]) == (TEXT_MODEL_NAME, str(version.version))
    for tag in ("checkpoint.sha256", "bundle.sha256", "run_id", "epoch"):
        assert text.tags[tag] == version.tags[tag]
    assert aliases(TEXT_MODEL_NAME) == {"candidate": "1"}
    assert text.description.startswith("ocp-mamba-lvm version 1, asked in words")
    assert '{"inputs": [{"concepts": ["sand tiger", "shark"]}]' in text.description
    described = [mlflow.MlflowClient().get_registered_model(n).description for n in NAMES]
    assert ["asked in words" in about for about in described] == [False, True]
    loaded = mlflow.pyfunc.load_model(f"models:/{TEXT_MODEL_NAME}@candidate")
    words = [str(word) for word in dataset.texts[:2]]
    [answer] = loaded.predict(pd.DataFrame({"concepts": [words]}))
    assert answer["concepts"] == words


def test_aliases_follow_and_an_alias_without_a_text_version_is_taken_away(
    versions: tuple[ModelVersion, ModelVersion],
) -> None:
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(MODEL_NAME, "champion", "1")
    assert follow_aliases() == {"candidate": "1", "champion": "1"}
    assert aliases(TEXT_MODEL_NAME) == {"candidate": "1", "champion": "1"}
    # a version that was registered without one for people becomes the champion
    source = client.get_model_version(MODEL_NAME, "1").source
    client.create_model_version(MODEL_NAME, source)
    client.set_registered_model_alias(MODEL_NAME, "champion", "2")
    client.delete_registered_model_alias(MODEL_NAME, "candidate")
    assert follow_aliases() == {"champion": None}
    assert aliases(TEXT_MODEL_NAME) == {}


def test_a_text_version_of_other_files_gets_no_alias(
    versions: tuple[ModelVersion, ModelVersion],
) -> None:
    client = mlflow.MlflowClient()
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{TEXT_MODEL_NAME}/1"))
    manifest = folder / "artifacts" / MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "epoch": 99}))
    client.set_registered_model_alias(MODEL_NAME, "champion", "1")
    with pytest.raises(EvidenceError, match=r"^text-changed: .* the alias champion was not moved"):
        follow_aliases()
    assert "champion" not in aliases(TEXT_MODEL_NAME)


def test_storing_it_again_changes_nothing(
    store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model.pt"
    with session.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
        train_tracked(run, dataset, tiny_config, checkpoint, epochs=1)
        bundle = write_bundle(tmp_path / "bundle", checkpoint, dataset, FACTS)
        entry = text_model_entry(model_entry(1, checkpoint, bundle))
        again = {**entry, "run_id": run.run_id}
        first = apply(json.loads(json.dumps(again)))
        assert apply(json.loads(json.dumps(again))) == first
        run.log_models(checkpoint, 1, bundle)
        version = run.register(1)
        assert version is not None
        register_text(first, version)
    rows = mlflow.search_logged_models([run.experiment_id], output_format="list")
    assert sorted(row.name for row in rows) == ["epoch-001", "text"]
    assert len(mlflow.MlflowClient().search_model_versions(f"name = '{TEXT_MODEL_NAME}'")) == 1
