"""Statistics of the requests reach an MLflow run, their contents do not; an outage hurts none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
from fastapi.testclient import TestClient
from servers import free_port
from services import client_of, write_model

from ocp_mamba.service.drift import WAITING, Drift
from ocp_mamba.service.source import FileSource

WORDS = ["concept é 1", "concept é 2", "concept é 3"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FileSource:
    return write_model(tmp_path_factory.mktemp("model"))


def watched(source: FileSource, drift: Drift) -> TestClient:
    client = client_of(source)
    client.service.drift = drift
    return client


@pytest.fixture
def dead_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = f"http://127.0.0.1:{free_port()}"
    mlflow.set_tracking_uri(uri)
    yield uri
    mlflow.set_tracking_uri(before)


def test_statistics_are_logged_and_contents_are_not(
    store: str, tmp_path: Path, source: FileSource
) -> None:
    x = np.random.default_rng(0).standard_normal((3, 4, 768))
    lengths = 7 * x / np.linalg.norm(x, axis=-1, keepdims=True)
    with watched(source, Drift("what is asked", step_seconds=3600)) as client:
        for _ in range(3):
            assert client.post("/v1/predict", json={"concepts": [WORDS]}).status_code == 200
        got = client.post("/v1/predict", json={"vectors": lengths.tolist()})
        assert got.status_code == 200
        top = [p["steps"][0]["next"][0]["score"] for p in got.json()["predictions"]]
        version = client.service.serving.version
    found = mlflow.MlflowClient()
    experiment = found.get_experiment_by_name("what is asked")
    [run] = found.search_runs([experiment.experiment_id])
    metrics = run.data.metrics
    assert (run.info.status, run.data.tags["serving.version"]) == ("FINISHED", version)
    assert (metrics["requests"], metrics["chains"]) == (4, 6)
    assert metrics["vector_norm_mean"] == pytest.approx(7)
    assert metrics["chain_length_mean"] == pytest.approx((3 * 3 + 3 * 4) / 6)
    assert metrics["nearest_cosine_p95"] == pytest.approx(1, abs=1e-5)  # the concepts themselves
    assert metrics["nearest_cosine_p05"] < 0.3  # vectors that no concept is near to
    assert metrics["top_score_p95"] <= 1
    assert min(top) >= metrics["top_score_p05"] - 0.05
    assert metrics["latency_seconds_p50"] > 0
    assert not run.data.params
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for text in WORDS:
        assert text.encode() not in everything


def test_a_step_is_logged_while_the_service_runs(store: str, source: FileSource) -> None:
    with watched(source, Drift("steps", step_seconds=0.05)) as client:
        deadline = time.monotonic() + 120
        history: list[int] = []
        while len(history) < 2:
            assert time.monotonic() < deadline
            client.post("/v1/predict", json={"concepts": [WORDS]})
            found = mlflow.MlflowClient()
            if experiment := found.get_experiment_by_name("steps"):
                for run in found.search_runs([experiment.experiment_id]):
                    entries = found.get_metric_history(run.info.run_id, "requests")
                    history = [entry.step for entry in entries]
    assert history[:2] == [0, 1]


def test_an_outage_of_the_store_touches_no_request(dead_store: str, source: FileSource) -> None:
    drift = Drift("nowhere", step_seconds=0.05)
    with watched(source, drift) as client:
        deadline = time.monotonic() + 120
        while drift.dropped < 2:
            assert time.monotonic() < deadline
            assert client.post("/v1/predict", json={"concepts": [WORDS]}).status_code == 200


def test_a_store_that_hangs_only_costs_statistics(source: FileSource) -> None:
    drift, gate = Drift("hangs", step_seconds=0.01), threading.Event()
    drift._log = lambda *given: gate.wait(120)  # type: ignore[method-assign]
    with watched(source, drift) as client:
        deadline = time.monotonic() + 120
        while drift.dropped == 0:
            assert time.monotonic() < deadline
            chains = [[WORDS[0]]] * 64
            got = client.post("/v1/predict", json={"concepts": chains * 4, "top_k": 1})
            assert got.status_code == 200
        assert drift._queue.qsize() == WAITING
        gate.set()
