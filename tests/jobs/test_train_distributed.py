"""The whole training under torchrun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import psutil
import pytest
from command import run
from data_maker import make_dataset

from ocp_mamba.config import ModelConfig, TrainConfig, model_config
from ocp_mamba.errors import BackendError, ConfigError
from ocp_mamba.jobs import train_distributed
from ocp_mamba.jobs.train import run_training
from ocp_mamba.jobs.train_distributed import _assist, _require_enough_chains, _restarted
from ocp_mamba.jobs.train_job import TrainJob, prepare
from ocp_mamba.training.distributed import World
from ocp_mamba.training.run_folder import claim

EPOCHS = 60
FLAGS = ["--model-size", "tiny", "--n-layers", 1, "--max-epochs", EPOCHS, "--batch-size", 16,
         "--precision", "float32", "--quiet"]  # fmt: skip


def rank_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("RANK")
    except psutil.Error:
        return None


WORDS = ["train", "--data", "data.npz", "--output", "out/model.pt", *FLAGS]


def kill_9_of_rank_1(store: str, folder: Path, *flags: str) -> tuple[int, str, int]:
    """Kill a process once there is a state; return its id, what was said, and the exit status."""
    make_dataset(60, 30).save(folder / "data.npz")
    launcher = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         *flags, "-m", "ocp_mamba", *map(str, WORDS)],
        cwd=folder, env={**os.environ, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (states(folder) and "val_next_vec_cosine" in distributed_runs()[0].data.metrics):
        assert launcher.poll() is None, launcher.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    workers = {rank_of(p): p for p in psutil.Process(launcher.pid).children()}
    workers["1"].send_signal(signal.SIGKILL)
    said, _ = launcher.communicate(timeout=600)
    return workers["1"].pid, said, launcher.returncode


def states(folder: Path) -> list[Path]:
    """The states to resume from, in the folders of their runs."""
    return list((folder / "out").glob("*/model.last.pt"))


def distributed_runs() -> list[mlflow.entities.Run]:
    """All trainings by several processes, the oldest first."""
    return mlflow.search_runs(
        experiment_names=["ocp_mamba"], filter_string="params.ran.processes != ''",
        order_by=["start_time"], output_format="list",
    )  # fmt: skip


@pytest.mark.slow
def test_kill_9_of_a_worker_fails_the_run_and_one_process_resumes(store: str, tmp_path: Path):
    killed, said, status = kill_9_of_rank_1(store, tmp_path)
    assert status != 0
    (state,) = states(tmp_path)

    lost = f"rank 0 of 2 lost rank 1 (process {killed} on"
    assert f"Error: {lost}" in said
    assert "/model.last.pt: go on with --resume" in said
    assert "Traceback" not in said.split("Error: rank 0")[0], "later comes torchrun's own"
    (failed,) = distributed_runs()
    assert failed.info.status == "FAILED"
    assert failed.data.tags["ended.reason"].startswith(f"WorkerLostError: {lost}")
    assert failed.data.params["ran.processes"] == "2"
    assert failed.data.tags["distributed.backend"] == "gloo"

    assert "registered   ocp-mamba-lvm version 1" in run(*WORDS, "--resume")
    assert not state.exists()
    (finished,) = distributed_runs()
    assert finished.info.run_id == failed.info.run_id == state.parent.name
    assert finished.info.status == "FINISHED"
    history = mlflow.MlflowClient().get_metric_history(finished.info.run_id, "val_next_vec_cosine")
    assert sorted(m.step for m in history) == list(range(1, EPOCHS + 1))


@pytest.mark.slow
def test_torchrun_starts_again_what_lost_a_worker_and_training_goes_on(store: str, tmp_path: Path):
    killed, said, status = kill_9_of_rank_1(store, tmp_path, "--max-restarts", "1")
    assert status == 0, said
    (finished,) = distributed_runs()
    folder = tmp_path / "out" / finished.info.run_id
    said = " ".join(said.split())  # an error is wrapped
    assert f"lost rank 1 (process {killed} on" in said
    assert f"torchrun starts again from {folder / 'model.last.pt'} while it has" in said
    assert f"restart 1 of this training by torchrun: going on from {folder}" in said
    assert "registered ocp-mamba-lvm version 1" in said
    assert states(tmp_path) == []
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["distributed.restarts"] == "1"
    history = mlflow.MlflowClient().get_metric_history(finished.info.run_id, "val_next_vec_cosine")
    assert sorted(m.step for m in history) == list(range(1, EPOCHS + 1))


@pytest.fixture
def job(tmp_path: Path) -> TrainJob:
    return TrainJob(
        tmp_path / "data.npz", tmp_path / "model.pt", ModelConfig(), TrainConfig(batch_size=3)
    )


def test_a_batch_smaller_than_the_processes_is_refused(job: TrainJob):
    _require_enough_chains(job, World(size=3))
    with pytest.raises(ConfigError, match="--batch-size 3 is smaller than the 4 processes"):
        _require_enough_chains(job, World(size=4))


@pytest.fixture
def related(tmp_path: Path) -> TrainJob:
    """A training on a dataset with relations, which the model is to take."""
    plain = make_dataset(60, 30)
    relation = np.arange(len(plain.chain_values)) % 2 + 1
    relation[plain.chain_offsets[:-1]] = 0
    meta = plain.meta | {"relations": ["is a", "part of"]}
    path = tmp_path / "related.npz"
    make_dataset(60, 30, chain_relation=relation.astype(np.uint16), meta=meta).save(path)
    return TrainJob(path, tmp_path / "model.pt", model_config("tiny"), TrainConfig(), True)


def test_every_rank_trains_the_model_of_rank_0(related: TrainJob, monkeypatch: pytest.MonkeyPatch):
    trained: list[object] = []
    monkeypatch.setattr(train_distributed, "fit", lambda model, *_, **__: trained.append(model))
    _assist(related, World(rank=1, size=2))
    (model,) = trained
    assert model.config == prepare(related, print)[0].model
    assert model.config.relations == ("is a", "part of")


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"backend": "cuda"}, "backend 'cuda' was forced, but the device is cpu"),
        ({"device": "cuda"}, "torchrun's processes compute on cpu; leave --device out"),
    ],
)
def test_every_rank_refuses_a_device_or_a_backend_that_it_has_not(
    rank: int, changed: dict[str, str], message: str, related: TrainJob
):
    job, world = replace(related, **changed), World(rank=rank, size=2)
    with pytest.raises(BackendError, match=message):
        _assist(job, world) if rank else run_training(job, print, world)


def test_what_torchrun_may_restart_goes_on_from_its_state(job: TrainJob, tmp_path: Path):
    said: list[str] = []
    world = World(may_restart=True, restarts=1)
    assert not _restarted(job, world, said.append).resume
    with claim(job.output, job.asked, resume=False) as mine:
        folder = mine.make("begun", dataset="d", store="s").path
    assert not _restarted(job, World(), said.append).resume
    assert not _restarted(replace(job, relations=True), world, said.append).resume
    assert not said
    assert _restarted(job, world, said.append).resume
    assert said == [f"restart 1 of this training by torchrun: going on from {folder}"]
