"""A bundle's way into the store: with the model, after an outage, and twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from tracked import train_tracked

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.serving.bundle import MANIFEST, read_bundle, write_bundle
from ocp_mamba.tracking import run as run_module
from ocp_mamba.tracking import sender, session
from ocp_mamba.tracking.operations import apply
from ocp_mamba.tracking.registry import register_best
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.tags import BUNDLE

FACTS = {"epoch": 2, "metrics_version": "3", "pool_size": 40, "metrics": {}, "gates": {}}


def write(run: TrackedRun, dataset: Dataset, checkpoint: Path) -> list[Path]:
    folder = checkpoint.parent / "bundle"
    return write_bundle(folder, checkpoint, dataset, FACTS | {"run_id": run.run_id})


def require_stored(model_id: str, run: TrackedRun, folder: Path) -> None:
    """The model's files are whole, and the digests of the bundle agree everywhere."""
    files = mlflow.artifacts.download_artifacts(f"models:/{model_id}", dst_path=str(folder))
    bundle = read_bundle(Path(files) / "artifacts")
    assert bundle.manifest["run_id"] == run.run_id
    version = register_best(model_id)
    model = mlflow.get_logged_model(model_id)
    tags = (version.tags, model.tags, mlflow.get_run(run.run_id).data.tags)
    assert [t[BUNDLE] for t in tags] == [bundle.digest] * 3
    loaded = mlflow.pyfunc.load_model(files).unwrap_python_model()
    assert loaded.__class__.__name__ == "ServedLVM"


def test_a_row_that_was_stored_before_gets_the_bundle(
    store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "model.pt"
    with session.track(
        dataset, "d.npz", output_dir="out", checkpoint_every=1, system_metrics=False
    ) as run:
        train_tracked(run, dataset, tiny_config, checkpoint, epochs=2)
        files = write(run, dataset, checkpoint)
        run.log_models(checkpoint, 2, files)
    rows = mlflow.search_logged_models([run.experiment_id], output_format="list")
    [model_id] = [row.model_id for row in rows if row.name == "epoch-002"]
    assert not (tmp_path / "bundle").exists(), "the store has it"
    require_stored(model_id, run, tmp_path / "stored")


def test_a_bundle_waits_for_the_store_and_may_be_sent_twice(
    store: str,
    dataset: Dataset,
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint, sent = tmp_path / "model.pt", []

    def down_for_models(operation: dict[str, Any]) -> str | None:
        if operation["op"] == "model":
            sent.append(operation)
            raise MlflowException("no answer")
        return apply(operation)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "apply", down_for_models)
        patch.setattr(sender, "FAILING_SECONDS", 0.5)
        with session.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
            train_tracked(run, dataset, tiny_config, checkpoint, epochs=2)
            files = write(run, dataset, checkpoint)
            run.log_models(checkpoint, 2, files)
    assert all(path.exists() for path in files), "they are kept until they are stored"
    assert run.queue_path.exists()
    session.replay(run.queue_path)
    assert not any(path.exists() for path in files)

    (operation,) = {o["epoch"]: o for o in sent if o["bundle"]}.values()
    assert Path(operation["bundle"][-1]).name == MANIFEST
    model_id = apply(operation)
    assert model_id is not None, "its files are gone, and it is stored"
    require_stored(model_id, run, tmp_path / "stored")


def test_a_bundle_stays_until_the_model_for_people_has_it_too(
    store: str,
    dataset: Dataset,
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store refuses that model, and the operations behind it go first."""
    checkpoint = tmp_path / "model.pt"

    def refuses(operation: dict[str, Any]) -> Any:
        if operation["op"] == "text_model":
            raise MlflowException.invalid_parameter_value("refused")
        return apply(operation)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "apply", refuses)
        with session.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
            train_tracked(run, dataset, tiny_config, checkpoint, epochs=1)
            files = write(run, dataset, checkpoint)
            run.log_models(checkpoint, 1, files)
    rows = mlflow.search_logged_models([run.experiment_id], output_format="list")
    assert [row.name for row in rows if BUNDLE in row.tags] == ["epoch-001"]
    assert all(path.exists() for path in files)
    session.replay(run.queue_path)
    rows = mlflow.search_logged_models([run.experiment_id], output_format="list")
    assert sorted(row.name for row in rows if BUNDLE in row.tags) == ["epoch-001", "text"]
    assert not any(path.exists() for path in files)
