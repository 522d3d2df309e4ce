"""A tracked training while its store is out of order, in each way, until it is replayed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import mlflow
import pytest
from outages import KINDS, OutageProxy, wait_until
from servers import Server

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import QueueError
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking import sender, session
from ocp_mamba.tracking.offline_queue import read_queue
from ocp_mamba.tracking.registry import MODEL_NAME
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.training.state import EpochResult

EPOCHS = 3
STEP_SECONDS = 0.28
"""Of the default training on two cores; an epoch has 72 steps."""
PASSWORD = "hunter22"


def quick(*kinds: str) -> list[object]:
    """All kinds; those that are not named are for `make test-all`."""
    return [k if k in kinds else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]


@pytest.fixture
def proxy(store: str, server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutageProxy]:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.2)
    made = OutageProxy(server.url, slow_seconds=0.05)
    yield made
    made.close()


@dataclass(frozen=True)
class Training:
    """A training of a few epochs, each with metrics that are its own."""

    dataset: Dataset
    config: ModelConfig
    folder: Path
    proxy: OutageProxy

    @property
    def address(self) -> str:
        return self.proxy.url.replace("//", f"//alice:{PASSWORD}@")

    def run(
        self, kind: str, begins: int, ends: int, at_its_begin: Callable[[], None] = lambda: None
    ) -> TrackedRun:
        """Train, with an outage from one epoch to another; `EPOCHS` + 1 is after the run's end."""
        model = OCPMambaLVM(self.config)
        checkpoint = self.folder / "model.pt"
        with session.track(
            self.dataset,
            "some.npz",
            output_dir=self.folder / "out",
            store=self.address,
            system_metrics=False,
            params={"kind": kind},
        ) as run:
            for epoch in range(1, EPOCHS + 1):
                if epoch == begins:
                    assert run.flush()
                    self.proxy.begin(kind)
                    at_its_begin()
                if epoch == ends:
                    self.proxy.end()
                run.on_epoch(self.epoch(epoch, model))
            save_checkpoint(
                checkpoint,
                model,
                dataset_fingerprint=self.dataset.fingerprint,
                encoder={"name": "random"},
                loop={},
            )
            run.log_models(checkpoint, EPOCHS)
            run.log_results({"next_vec_cosine": 0.5}, {"speed": "pass"}, epoch=EPOCHS)
            run.log_child("ridge", {}, {"next_vec_cosine": 0.4}, files=[checkpoint])
            run.log_artifact(checkpoint, "reports")
            run.register(EPOCHS)
        return run

    def epoch(self, number: int, model: OCPMambaLVM) -> EpochResult:
        return EpochResult(
            epoch=number,
            losses={"total": 1.0 / number},
            lr=0.001,
            seconds=1.0,
            examples_per_second=10.0,
            val={"next_vec_cosine": 0.1 * number},
            improvement_trend=None,
            is_best=True,
            is_last=number == EPOCHS,
            max_epochs=EPOCHS,
            model=model,
        )


@pytest.fixture
def training(
    dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path, proxy: OutageProxy
) -> Training:
    return Training(dataset, tiny_config, tmp_path, proxy)


def require_whole(run: TrackedRun, store: str) -> None:
    """The store holds all that the run logged, once and in order, and the model is registered."""
    mlflow.set_tracking_uri(store)
    client = mlflow.MlflowClient()
    logged = client.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    points = client.get_metric_history(run.run_id, "val_next_vec_cosine")
    assert [p.step for p in points] == list(range(1, EPOCHS + 1))
    assert [p.value for p in points] == pytest.approx([0.1 * e for e in range(1, EPOCHS + 1)])
    assert logged.data.tags["gate.speed"] == "pass"
    rows = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    assert sorted(row.name for row in rows) == ["epoch-001", "epoch-002", "epoch-003"]
    (whole,) = (row for row in rows if str(row.status) == "READY")
    assert whole.name == "epoch-003"
    children = client.search_runs([run.experiment_id], f"tags.mlflow.parentRunId = '{run.run_id}'")
    assert [(c.info.run_name, c.info.status) for c in children] == [("ridge", "FINISHED")]
    assert [f.path for f in client.list_artifacts(children[0].info.run_id)] == ["model.pt"]
    assert [f.path for f in client.list_artifacts(run.run_id, "reports")] == ["reports/model.pt"]
    (version,) = client.search_model_versions(f"tags.run_id = '{run.run_id}'")
    assert version.tags["model_id"] == whole.model_id
    assert version.tags["next_vec_cosine"] == "0.500000"
    newest = client.get_model_version_by_alias(MODEL_NAME, "candidate")
    assert newest.version == version.version


@pytest.mark.parametrize("kind", quick("401"))
def test_an_outage_in_the_middle_loses_nothing(kind: str, training: Training) -> None:
    run = training.run(kind, begins=2, ends=3)
    assert not run.queue_path.exists()
    require_whole(run, training.address)


@pytest.mark.parametrize("kind", quick("hanging", "answer lost"))
def test_an_outage_over_the_end_is_replayed(
    kind: str,
    training: Training,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def lose_patience() -> None:
        for limit in ("FAILING_SECONDS", "SILENT_SECONDS", "LONGEST_SECONDS"):
            monkeypatch.setattr(sender, limit, 0.3)
        monkeypatch.setattr(sender, "CLOSE_SECONDS", 0.1)

    run = training.run(kind, begins=2, ends=EPOCHS + 1, at_its_begin=lose_patience)
    monkeypatch.setattr(sender, "LONGEST_SECONDS", 600.0)
    said = capsys.readouterr().out
    assert f"ocp-mamba runs replay {run.queue_path}" in said
    written = run.queue_path.read_text()
    assert PASSWORD not in written + said
    assert read_queue(run.queue_path)[1][-1]["op"] == "end"

    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # `mlflow.set_tracking_uri` has set it
    with pytest.raises(QueueError, match=r"password of its store http://alice:\*\*\*@.* not kept"):
        session.replay(run.queue_path)
    if kind == "refused":
        with pytest.raises(QueueError, match="0 of 9 operations sent"):
            session.replay(run.queue_path, training.address)
        assert run.queue_path.read_text() == written
    training.proxy.end()
    sent = session.replay(run.queue_path, training.address)
    assert not run.queue_path.exists()
    assert [result.name for op, result in sent if op["op"] == "register"] == [MODEL_NAME]
    require_whole(run, training.address)
    run.queue_path.write_text(written)
    session.replay(run.queue_path, training.address)  # a second time changes nothing
    require_whole(run, training.address)


@pytest.mark.parametrize("kind", quick("hanging"))
def test_an_outage_costs_the_loop_milliseconds(kind: str, training: Training) -> None:
    model = OCPMambaLVM(training.config)
    with session.track(
        training.dataset,
        "some.npz",
        output_dir=training.folder / "out",
        store=training.proxy.url,
        system_metrics=False,
    ) as run:
        assert run.flush()
        training.proxy.begin(kind)
        took = []
        for epoch in range(1, 16):
            started = time.perf_counter()
            run.on_epoch(replace(training.epoch(epoch, model), is_last=False))
            took.append(time.perf_counter() - started)
            if epoch == 1:
                wait_until(lambda: kind == "refused" or training.proxy.requests)
        cost = run.log_cost()
        training.proxy.end()
    assert cost["tracking_seconds"] >= sum(took) * 0.9
    assert sorted(took)[7] < 0.01 * 72 * STEP_SECONDS, "1% of an epoch of the default training"
