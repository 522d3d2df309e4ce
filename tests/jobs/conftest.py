"""One trained and registered version, which promotions and frauds share."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from forgeries import NAME, Workshop
from registered import learnable, train_version

from ocp_mamba.tracking.registry.aliases import CHAMPION, set_alias
from ocp_mamba.tracking.registry.versions import downloaded
from ocp_mamba.tracking.store import use_store


@pytest.fixture(scope="session")
def trained_once(
    tmp_path_factory: pytest.TempPathFactory, empty_database: Path
) -> Iterator[Workshop]:
    folder = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shutil.copyfile(empty_database, folder / "mlflow.db")
        store = use_store(f"sqlite:///{folder / 'mlflow.db'}")
        learnable().save(folder / "learnable.npz")
        version = train_version(folder / "learnable.npz", folder / "out").version
        assert version is not None
        with downloaded(version) as files:
            yield Workshop(store, folder, version, files)


@pytest.fixture
def workshop(trained_once: Workshop, store: str, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """The shared store, in use; each test registers under a name of its own."""
    monkeypatch.chdir(trained_once.folder)
    use_store(trained_once.store)
    return trained_once


@pytest.fixture
def champion(workshop: Workshop) -> None:
    """The genuine version is the champion of the model that the frauds are versions of."""
    if not mlflow.MlflowClient().search_registered_models(f"name = '{NAME}'"):
        set_alias(NAME, CHAMPION, workshop.copy().register(NAME).version)
