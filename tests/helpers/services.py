"""A service of a tiny model, in this process."""

from __future__ import annotations

import http.client
import threading
from pathlib import Path
from typing import Any

import mlflow
import torch
from bad_requests import Answer
from data_maker import TINY, make_dataset
from fastapi.testclient import TestClient

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.service.routes.app import create_app
from ocp_mamba.service.server import bound, server_of
from ocp_mamba.service.settings import ServiceSettings
from ocp_mamba.service.source import FileSource
from ocp_mamba.service.state import Service
from ocp_mamba.serving.bundle import write_bundle
from ocp_mamba.serving.pyfunc import save_pyfunc

LIMIT_S = 120
"""For an answer; a slow machine must pass."""

ENCODER = {"name": "random", "weight_hash": "0" * 64}


def dataset_of(**given: Any) -> Dataset:
    return make_dataset(n_chains=40, n_concepts=30, seed=1, **given)


def write_model(folder: Path, config: ModelConfig | None = None, seed: int = 0) -> FileSource:
    """A ``.pt`` of drawn weights, and the dataset file of its concepts."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = build_model(config or ModelConfig(**TINY))
    save_checkpoint(folder / "tiny.pt", model, dataset_fingerprint="f", encoder=ENCODER)
    dataset_of().save(folder / "data.npz")
    return FileSource(folder / "tiny.pt", folder / "data.npz")


def client_of(source: Any, **settings: Any) -> TestClient:
    """A client of a service in this process; use it in a ``with`` block."""
    service = Service(source, ServiceSettings(**settings))
    client = TestClient(create_app(service), raise_server_exceptions=False)
    client.service = service
    return client


def register(folder: Path, name: str = "tiny", seed: int = 0, **given: Any) -> str:
    """Register a model of drawn weights with its bundle in the store in use; returns its version.

    Its predictions differ from those of another seed.
    """
    source = write_model(folder, seed=seed)
    facts = {"run_id": "r", "epoch": 1, "metrics_version": 1, "pool_size": 30, "metrics": {},
             "gates": {}}  # fmt: skip
    bundle = write_bundle(folder / "bundle", source.path, dataset_of(), facts)
    save_pyfunc(folder / "pyfunc", source.path, bundle, **given)
    client = mlflow.MlflowClient()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    place = str(folder / "pyfunc")
    if mlflow.get_tracking_uri().startswith("http"):  # the files go through the server
        with mlflow.start_run() as run:
            mlflow.log_artifacts(place, "model")
            place = mlflow.get_artifact_uri("model")
        return str(client.create_model_version(name, place, run.info.run_id).version)
    return str(client.create_model_version(name, place).version)


def point(alias: str, version: str, name: str = "tiny") -> None:
    """Move an alias."""
    mlflow.MlflowClient().set_registered_model_alias(name, alias, version)


class Running:
    """A service that listens on ``url``, in a thread; use it in a ``with`` block."""

    def __init__(self, source: Any, **settings: Any) -> None:
        limits = ServiceSettings(port=0, **settings)
        self.service = Service(source, limits)
        self.url = ""
        self._listens = threading.Event()
        self.app = create_app(self.service)
        self.server = server_of(self.app, limits, bound("127.0.0.1", 0), self._started)
        self._thread = threading.Thread(target=self.server.run)

    def _started(self, url: str) -> None:
        self.url = url
        self._listens.set()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._listens.wait(120), "the service does not listen"
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        """Send a request on a connection of its own; header names of the answer are lower-case."""
        connection = http.client.HTTPConnection(*self.address, timeout=LIMIT_S)
        try:
            connection.request(method, path, body, headers)
            got = connection.getresponse()
            return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, got.read())
        finally:
            connection.close()

    def stop(self) -> None:
        """Stop as SIGTERM does; returns when what was taken is answered."""
        self.server.should_exit = True
        self._thread.join()
