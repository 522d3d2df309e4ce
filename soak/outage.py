"""Outages of the tracking store: seven kinds, at four moments of a whole training job."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
from data_maker import TINY, make_dataset
from outages import KINDS, OutageProxy
from servers import tracking_server

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.errors import TrackingError
from ocp_mamba.jobs.train import run_training
from ocp_mamba.jobs.train_job import TrainJob
from ocp_mamba.tracking import sender, session
from ocp_mamba.tracking.registry import CANDIDATE, MODEL_NAME
from ocp_mamba.tracking.run import TrackedRun
from soak.result import Log, Result

CAMPAIGN = "outage"
EPOCHS = 6
PASSWORD = "canary-4f9a1c"
BEFORE, AFTER = 0, EPOCHS + 1
MOMENTS = {
    "at the start": (BEFORE, 3),
    "in the middle": (3, 5),
    "over the end": (EPOCHS, AFTER),
    "the whole training": (BEFORE, AFTER),
}
"""The epochs before which an outage begins and ends; `AFTER` is after the job has ended."""

DEFAULT_EPOCH_SECONDS = 20.0
"""An epoch of the default training on the two cores of docs/performance.md."""

LARGEST_SHARE = 0.01
PATIENCE_SECONDS = 3.0
"""Limits of `sender` during an outage over the end, so that 14 of them do not take an hour."""

HTTP = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@dataclass
class Outage:
    """One outage, and what the training met in it."""

    proxy: OutageProxy
    kind: str
    begins: int
    ends: int
    run: TrackedRun | None = None
    blocked: list[float] = field(default_factory=list)

    @contextmanager
    def happening(self) -> Iterator[None]:
        """Within the block a training meets the outage at its epochs."""
        log_params, on_epoch = TrackedRun.log_params, TrackedRun.on_epoch

        def opened(run: TrackedRun, params: Any) -> None:
            if self.run is None:
                self.run = run
                if self.begins == BEFORE:
                    self.proxy.begin(self.kind)
            log_params(run, params)

        def epoch(run: TrackedRun, result: Any) -> None:
            if result.epoch == self.begins:
                self.proxy.begin(self.kind)
            if result.epoch == self.ends:
                self.proxy.end()
            started = time.perf_counter()
            on_epoch(run, result)
            self.blocked.append(time.perf_counter() - started)

        with (
            mock.patch.object(TrackedRun, "log_params", opened),
            mock.patch.object(TrackedRun, "on_epoch", epoch),
        ):
            yield

    def share(self) -> float:
        """Part of an epoch of the default training that logging takes from the loop."""
        return sorted(self.blocked)[len(self.blocked) // 2] / DEFAULT_EPOCH_SECONDS


def run(quick: bool, log: Log) -> list[Result]:
    """Train through each outage and check that nothing is lost or doubled.

    Args:
        quick: two outages instead of 28.
        log: takes a line for each.
    """
    results = []
    cases = [(kind, moment) for kind in KINDS for moment in MOMENTS]
    if quick:
        cases = [("hanging", "over the end"), ("answer lost", "in the middle")]
    with tempfile.TemporaryDirectory() as scratch, mock.patch.dict(os.environ, HTTP):
        folder = Path(scratch)
        make_dataset(n_chains=60, n_concepts=40, seed=0).save(folder / "data.npz")
        server = tracking_server(folder)
        server.start()
        proxy = OutageProxy(server.url)
        os.environ["MLFLOW_TRACKING_URI"] = proxy.url.replace("//", f"//alice:{PASSWORD}@")
        try:
            results.append(_before_the_run(proxy, folder, log))
            for number, (kind, moment) in enumerate(cases):
                place = folder / str(number)
                place.mkdir()
                result = _survive(proxy, kind, moment, folder / "data.npz", place)
                log(f"{result.case}: {result.outcome}, {result.detail}")
                results.append(result)
        finally:
            proxy.close()
            server.kill()
    return results


def _before_the_run(proxy: OutageProxy, folder: Path, log: Log) -> Result:
    """A store that is down before the training is an error at once, without a training."""
    case = "refused, before the run is opened"
    proxy.begin("refused")
    try:
        _train(folder / "data.npz", folder / "before")
    except TrackingError as error:
        shown = PASSWORD in str(error)
        log(f"{case}: {error}")
        return Result(CAMPAIGN, case, "lost" if shown else "refused", str(error))
    finally:
        proxy.end()
    return Result(CAMPAIGN, case, "lost", "the training began without a store")


def _survive(proxy: OutageProxy, kind: str, moment: str, data: Path, folder: Path) -> Result:
    case = f"{kind}, {moment}"
    outage = Outage(proxy, kind, *MOMENTS[moment])
    try:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), outage.happening(), _patience(outage):
            _train(data, folder)
        assert outage.run is not None
        faults = _faults_of_file(outage.run.queue_path, said.getvalue())
        if outage.ends == AFTER:
            proxy.end()
            session.replay(outage.run.queue_path)
            if outage.run.queue_path.exists():
                faults.append("the queue's file is left after the replay")
        faults += _faults(outage.run)
        if outage.share() > LARGEST_SHARE:
            faults.append(f"logging takes {outage.share():.2%} of the loop")
    except Exception as error:
        return Result(CAMPAIGN, case, "lost", f"{type(error).__name__}: {error}")
    finally:
        proxy.end()
    took = f"{1000 * outage.share() * DEFAULT_EPOCH_SECONDS:.0f} ms an epoch in the loop"
    detail = "; ".join([*faults, f"{took}, {outage.share():.3%} of one of the default training"])
    return Result(CAMPAIGN, case, "lost" if faults else "survived", detail)


@contextmanager
def _patience(outage: Outage) -> Iterator[None]:
    """Short limits of the wait at the end, where the outage goes on until after it."""
    names = ("FAILING_SECONDS", "SILENT_SECONDS", "LONGEST_SECONDS")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(sender, "RETRY_SECONDS", 1.0))
        for name in names if outage.ends == AFTER else ():
            stack.enter_context(mock.patch.object(sender, name, PATIENCE_SECONDS))
        yield


def _train(data: Path, folder: Path) -> None:
    job = TrainJob(
        data=data,
        output=folder / "model.pt",
        model=ModelConfig(**TINY),
        train=TrainConfig(max_epochs=EPOCHS, batch_size=16, precision="float32"),
        progress=False,
    )
    run_training(job, print)


def _faults_of_file(path: Path, said: str) -> list[str]:
    """What is wrong with the queue's file and with what the person was told."""
    faults = ["a password was printed"] if PASSWORD in said else []
    if path.exists():
        faults += ["a password is in the queue's file"] if PASSWORD in path.read_text() else []
        faults += ["others can read the queue's file"] if path.stat().st_mode & 0o077 else []
    return faults


def _faults(run: TrackedRun) -> list[str]:
    """What the store lacks of a run, or has twice."""
    client = mlflow.MlflowClient()
    logged = client.get_run(run.run_id)
    steps = [m.step for m in client.get_metric_history(run.run_id, "val_next_vec_cosine")]
    rows = client.search_logged_models([run.experiment_id], f"source_run_id = '{run.run_id}'")
    whole = {row.model_id for row in rows if str(row.status) == "READY"}
    made = client.search_model_versions(f"tags.run_id = '{run.run_id}'")
    versions = [v for v in made if v.name == MODEL_NAME]
    candidate = client.get_model_version_by_alias(MODEL_NAME, CANDIDATE)
    children = client.search_runs([run.experiment_id], f"tags.mlflow.parentRunId = '{run.run_id}'")
    reports = [file.path for file in client.list_artifacts(run.run_id, "reports")]
    names = [child.info.run_name for child in children]
    checks: dict[str, Callable[[], bool]] = {
        f"status {logged.info.status}": lambda: logged.info.status == "FINISHED",
        f"validation at epochs {steps}": lambda: steps == list(range(1, EPOCHS + 1)),
        f"rows {sorted(r.name for r in rows)}": lambda: (
            sorted(r.name for r in rows)
            == [*(f"epoch-{e:03d}" for e in range(1, EPOCHS + 1)), "text"]
        ),
        f"{len(versions)} versions": lambda: len(versions) == 1,
        f"{len(made)} versions with those for people": lambda: len(made) == 2,
        "the version is of another model": lambda: versions[0].tags["model_id"] in whole,
        "the alias is elsewhere": lambda: candidate.version == versions[0].version,
        f"children {sorted(names)}": lambda: len(names) == len(set(names)) > 0,
        "no report": lambda: "reports/report.html" in reports,
        "the cosine is missing": lambda: "next_vec_cosine" in logged.data.metrics,
    }
    return [fault for fault, holds in checks.items() if not holds()]
