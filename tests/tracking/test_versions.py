"""Versions found, downloaded, tagged and loaded, and what is said where that cannot be."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from bundles import write_version
from logged import log_model
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import EvidenceError, RegistryError
from ocp_mamba.tracking.registry import (
    load_registered,
    load_run_file,
    load_version,
    logged_model_id,
    version_artifacts,
    version_of_alias,
)
from ocp_mamba.tracking.registry.aliases import version_at
from ocp_mamba.tracking.registry.register import register_best
from ocp_mamba.tracking.registry.versions import (
    MAX_CARD_CHARACTERS,
    describe_version,
    downloaded,
    find_version,
    run_tags,
    tag_version,
)

NAME = "m"


@pytest.fixture
def three(store: str, tmp_path: Path) -> list[ModelVersion]:
    """Three versions without files."""
    client = MlflowClient()
    client.create_registered_model(NAME)
    return [client.create_model_version(NAME, str(tmp_path / "gone")) for _ in range(3)]


def test_a_version_is_found_by_number_and_alias_and_said_to_be_missing(
    three: list[ModelVersion],
) -> None:
    with pytest.raises(EvidenceError) as refused:
        find_version(NAME, "champion")
    assert refused.value.fault == "version-missing"
    assert str(refused.value) == "version-missing: m has no alias 'champion'; it has none"
    client = MlflowClient()
    client.set_registered_model_alias(NAME, "mine", "3")
    client.set_registered_model_alias(NAME, "champion", "2")
    assert str(find_version(NAME, "champion").version) == "2"
    assert str(find_version(NAME, "1").version) == "1"
    assert str(find_version(NAME, 3).version) == "3", "a number may be one"
    assert str(version_at(NAME, "mine").version) == "3"
    assert version_at(NAME, "other") is None
    with pytest.raises(EvidenceError) as refused:
        find_version(NAME, "other")
    assert str(refused.value) == (
        "version-missing: m has no alias 'other'; it has champion (version 2), mine (version 3)"
    )
    with pytest.raises(
        EvidenceError, match=r"^version-missing: m version 9: .*not found"
    ) as refused:
        find_version(NAME, "9")
    assert refused.value.fault == "version-missing"
    assert version_of_alias("champion", NAME) == "2"
    assert version_of_alias("absent", NAME) is None
    assert version_of_alias("champion") is None, "there is no such model"
    with pytest.raises(RegistryError, match=r"^registered model absent: .*absent.* not found"):
        find_version("absent", "1")


def test_what_cannot_be_downloaded_is_said(three: list[ModelVersion]) -> None:
    with pytest.raises(EvidenceError) as refused, downloaded(three[0]):
        raise AssertionError
    assert refused.value.fault == "files-missing"
    assert str(refused.value).startswith("files-missing: models:/m/1: ")
    Path(three[1].source).mkdir()
    with pytest.raises(EvidenceError) as refused, downloaded(three[1]):
        raise AssertionError
    assert str(refused.value) == f"files-missing: models:/m/2: {three[1].source} is empty or gone"
    (Path(three[2].source) / "a.txt").write_text("here")
    with downloaded(three[2]) as folder:
        assert [p.read_text() for p in folder.iterdir()] == ["here"]
        assert folder != Path(three[2].source)
    assert not folder.exists(), "a copy for the block"


def test_tags_and_cards_that_are_too_long_are_cut(three: list[ModelVersion]) -> None:
    tag_version(three[0], {"a": "x" * 6000, "b": "short"})
    describe_version(three[0], "y" * MAX_CARD_CHARACTERS)
    kept = MlflowClient().get_model_version(NAME, "1")
    assert kept.tags == {"a": "x" * 5000, "b": "short"}
    assert kept.description == "y" * MAX_CARD_CHARACTERS, "it fits"
    lines = "\n".join(f"line {n:04}" for n in range(600))
    describe_version(three[1], lines)
    text = MlflowClient().get_model_version(NAME, "2").description
    note = "\n\n… cut here: MLflow keeps no more."
    assert text.endswith(note)
    body = text.removesuffix(note)
    assert lines.startswith(body + "\n"), "whole lines"
    assert MAX_CARD_CHARACTERS - len("line 0000\n") < len(text) <= MAX_CARD_CHARACTERS
    assert run_tags("0" * 32) is None
    run = MlflowClient().create_run("0", tags={"k": "v"}).info.run_id
    assert run_tags(run)["k"] == "v"


def test_weights_come_back_by_every_address(
    store: str,
    tmp_path: Path,
    dataset: Dataset,
    tiny_config: ModelConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_version(folder, dataset, tiny_config)
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    model_id, run_id = log_model(tmp_path, files)
    version = register_best(model_id)
    alias, number = f"models:/{version.name}@candidate", f"models:/{version.name}/1"
    for uri in (alias, number, f"models:/{model_id}"):
        assert logged_model_id(uri) == model_id
    for uri in (alias, f"models:/{model_id}"):
        checkpoint, model = load_registered(uri)
        assert (checkpoint.model_config, model.config) == (tiny_config, tiny_config)
        assert load_version(uri)[1] == checkpoint.encoder == dict(dataset.meta["encoder"])
        assert not model.training
    with version_artifacts(number) as artifacts:
        assert {p.name: p.read_bytes() for p in artifacts.iterdir()} == files
    assert not artifacts.exists()
    for uri in ("models:/absent/1", "models:/m-0000"):
        with pytest.raises(RegistryError, match=f"^{uri}: no model to load: ") as refused:
            load_version(uri)
        assert "\n" not in str(refused.value)
    with pytest.raises(RegistryError) as refused:
        load_version("model.pt")
    assert str(refused.value) == (
        "model.pt: wanted models:/NAME@ALIAS, models:/NAME/VERSION or models:/ID"
    )
    broken = log_model(tmp_path, {"model.pt": b"no weights"}).model_id
    with pytest.raises(RegistryError, match=f"^models:/{broken}: no model to load: .*model.pt"):
        load_registered(f"models:/{broken}")
    with pytest.raises(RegistryError, match=f"^runs:/{run_id}/a.pt: no model to load: .*a.pt"):
        load_run_file(f"runs:/{run_id}/a.pt")
    MlflowClient().log_artifact(run_id, str(folder / "model.pt"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    assert load_run_file(f"runs:/{run_id}/model.pt").dataset_fingerprint == dataset.fingerprint
    assert list(scratch.iterdir()) == [], "the copy is gone"


def test_a_store_that_cannot_be_asked_for_an_alias_is_named(
    three: list[ModelVersion], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_order(*args: object, **kwargs: object) -> None:
        raise MlflowException("the store is out of order\nmore of it")

    monkeypatch.setattr(MlflowClient, "search_registered_models", out_of_order)
    with pytest.raises(RegistryError) as refused:
        version_of_alias("champion", NAME)
    assert str(refused.value) == "m@champion: the store is out of order"
