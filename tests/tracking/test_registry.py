from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from tracked import train_tracked

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import RegistryError
from ocp_mamba.model.checkpoint import load_model
from ocp_mamba.serving.pyfunc import input_example
from ocp_mamba.system.files import sha256_of
from ocp_mamba.tracking import session
from ocp_mamba.tracking.registry import (
    MODEL_NAME,
    REGISTERED,
    load_version,
    register_best,
    register_once,
)
from ocp_mamba.tracking.run import TrackedRun

URI = f"models:/{MODEL_NAME}@candidate"


@pytest.fixture
def trained(
    store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> tuple[TrackedRun, str]:
    """A finished run with two epochs, and the id of its best model."""
    with session.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
        result = train_tracked(run, dataset, tiny_config, tmp_path / "model.pt", epochs=2)
        run.log_models(tmp_path / "model.pt", result.best_epoch)
        run.log_results({"next_vec_cosine": 0.625}, {"train_time": "pass"}, epoch=2)
    assert result.best_epoch == 2
    stored = mlflow.search_logged_models([run.experiment_id], output_format="list")
    (model_id,) = (row.model_id for row in stored if row.name == "epoch-002")
    return run, model_id


def test_version_says_what_it_is_and_serves_the_checkpoint(
    trained: tuple[TrackedRun, str], dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    run, model_id = trained
    first = register_best(model_id, tags={"note": "first"})
    second = register_best(model_id)
    assert (int(first.version), int(second.version)) == (1, 2)
    assert mlflow.MlflowClient().get_model_version_by_alias(MODEL_NAME, "candidate").version == (
        second.version
    )
    assert first.tags["note"] == "first"
    wanted = {
        "next_vec_cosine": "0.625000",
        "epoch": "2",
        "run_id": run.run_id,
        "model_id": model_id,
        "dataset.fingerprint": dataset.fingerprint,
        "encoder.name": "random",
        "gate.train_time": "pass",
    }
    assert wanted.items() <= first.tags.items()

    local = load_model(tmp_path / "model.pt")
    loaded, encoder = load_version(URI)
    assert encoder == {k: str(v) for k, v in encoder.items()}
    assert not loaded.training
    for name, value in local.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    example = input_example(tiny_config)
    assert isinstance(example, np.ndarray)
    served = mlflow.pyfunc.load_model(URI).predict(example)
    with torch.inference_mode():
        np.testing.assert_allclose(served, local(torch.from_numpy(example)), atol=1e-5)


def test_a_model_is_registered_once_and_its_alias_stays_where_it_moved(
    trained: tuple[TrackedRun, str], tmp_path: Path
) -> None:
    run, model_id = trained
    sha256 = sha256_of(tmp_path / "model.pt")
    first = register_once(model_id, run.run_id, sha256)
    assert register_once(model_id, run.run_id, sha256).version == first.version
    later = register_best(model_id)
    register_once(model_id, run.run_id, sha256)
    client = mlflow.MlflowClient()
    assert client.get_model_version_by_alias(MODEL_NAME, "candidate").version == later.version
    client.delete_model_version_tag(MODEL_NAME, first.version, REGISTERED)
    register_once(model_id, run.run_id, sha256)
    assert client.get_model_version_by_alias(MODEL_NAME, "candidate").version == first.version
    with pytest.raises(RegistryError, match="those that were evaluated are 000000000000; nothing"):
        register_once(model_id, run.run_id, "0" * 64)


def test_row_without_weights_is_refused(trained: tuple[TrackedRun, str]) -> None:
    run, _ = trained
    (row,) = (
        r
        for r in mlflow.search_logged_models([run.experiment_id], output_format="list")
        if r.name == "epoch-001"
    )
    with pytest.raises(RegistryError, match=r"\(epoch-001\) holds metrics, no weights"):
        register_best(row.model_id)
    with pytest.raises(RegistryError, match="no model to load"):
        load_version(f"models:/{row.model_id}")
    assert mlflow.MlflowClient().search_registered_models() == []
