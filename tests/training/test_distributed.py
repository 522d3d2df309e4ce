"""Real processes that train together over gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import training_process
from data_maker import make_dataset
from servers import free_port
from torch.distributed import HashStore

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import WorkerLostError
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.model.build import build_model
from ocp_mamba.system.process import PID_TAG, START_TAG, Killed, process_tags
from ocp_mamba.training import distributed
from ocp_mamba.training.distributed import ALONE, World, join
from ocp_mamba.training.state import EpochResult, FitResult
from ocp_mamba.training.trainer import fit

CONFIG: dict[str, Any] = {
    "batch_size": 7,
    "max_epochs": 3,
    "infonce_weight": 0.3,
    "lr": 3e-3,
    "precision": "float32",
}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def data() -> Dataset:
    """57 chains of train, so that the last of 9 batches of 7 leaves one process without a chain."""
    made = make_dataset(n_chains=100, n_concepts=40, seed=2)
    split = made.split.copy()
    split[:] = 1
    split[:57] = 0
    return make_dataset(n_chains=100, n_concepts=40, seed=2, split=split)


def train_alone(data: Dataset, output: Path | None = None, **more: Any) -> tuple[FitResult, Any]:
    torch.manual_seed(0)
    model = build_model(ModelConfig(d_model=32, n_layers=1, headdim=16))
    result = fit(
        model,
        data,
        TrainConfig(**CONFIG),
        validate=validator(data, BankIndex(data.bank)),
        output=output,
        progress=False,
        **more,
    )
    return result, model.state_dict()


@pytest.fixture(scope="module")
def alone(data: Dataset) -> tuple[FitResult, Any]:
    return train_alone(data)


class Interruption(Exception):
    pass


def interrupt(result: EpochResult) -> None:
    if result.epoch == 2:
        raise Interruption


@pytest.fixture(scope="module")
def together(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, started as torchrun does, train anew and from one process's state."""
    folder = tmp_path_factory.mktemp("together")
    data.save(folder / "data.npz")
    with pytest.raises(Interruption):
        train_alone(data, folder / "begun.pt", on_epoch=interrupt)
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    environment |= {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    script = str(Path(training_process.__file__))
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(folder), json.dumps(CONFIG)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
    return folder


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["anew", "begun"])
def test_two_processes_train_as_one_does(name, rank, together, alone):
    """Losses, evaluations and weights; also where one process began and two went on."""
    result, weights = alone
    history, found = json.loads((together / f"{name}.{rank}.json").read_text())
    assert len(history) == len(result.history) == CONFIG["max_epochs"]
    for ours, theirs in zip(history, result.history, strict=True):
        assert ours["losses"] == pytest.approx(theirs.losses, abs=TOLERANCE)
        assert ours["val"] == pytest.approx(theirs.val, abs=TOLERANCE)
    for key, value in weights.items():
        torch.testing.assert_close(torch.tensor(found[key]), value, atol=TOLERANCE, rtol=0)


def test_one_process_goes_on_where_two_were(data, together, alone):
    result, weights = train_alone(data, together / "anew_left.pt", resume=True)
    for ours, theirs in zip(result.history, alone[0].history, strict=True):
        assert ours.losses == pytest.approx(theirs.losses, abs=TOLERANCE)
    for key, value in alone[1].items():
        torch.testing.assert_close(weights[key], value, atol=TOLERANCE, rtol=0)


def dead_process() -> dict[str, str]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    tags = process_tags() | {PID_TAG: str(child.pid)}
    tags |= {START_TAG: f"{psutil.Process(child.pid).create_time():.2f}"}
    child.kill()
    child.communicate()
    return tags


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Rank 0 of three; rank 1 lives, rank 2 is dead."""
    monkeypatch.setattr(distributed, "GONE_SECONDS", 0.1)
    peers = (process_tags(), process_tags(), dead_process())
    return World(rank=0, size=3, peers=peers, store=HashStore())


@pytest.mark.parametrize("sign", [Killed("SIGTERM"), RuntimeError("[gloo] Connection closed")])
def test_a_dead_process_is_named_whichever_way_it_shows(world, sign):
    before = signal.getsignal(signal.SIGTERM)
    pid = world.peers[2][PID_TAG]
    with (
        pytest.raises(WorkerLostError, match=rf"rank 0 of 3 lost rank 2 \(process {pid} on"),
        world.name_lost_workers(),
    ):
        raise sign
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # torchrun's comes now
    signal.signal(signal.SIGTERM, before)


def test_a_process_that_was_told_to_end_is_not_lost(world):
    told = replace(world, rank=2)
    with pytest.raises(Killed), replace(told, peers=(process_tags(),) * 3).name_lost_workers():
        raise Killed("SIGTERM")
    with pytest.raises(Killed), world.name_lost_workers():
        raise Killed("SIGTERM")
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(WorkerLostError, match="another host, or the network"),
        world.name_lost_workers(),
    ):
        raise RuntimeError("NCCL timeout")
    signal.signal(signal.SIGTERM, before)


def test_an_error_of_this_process_stays_what_it_is(world):
    with pytest.raises(RuntimeError, match="out of memory"), world.name_lost_workers():
        raise RuntimeError("out of memory")


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_the_shares_of_a_batch_are_the_batch(size):
    data = make_dataset(n_chains=60, n_concepts=40, seed=4)
    whole = list(batches(data, "train", 8, shuffle_seed=1))
    shares = [list(batches(data, "train", 8, shuffle_seed=1, share=(r, size))) for r in range(size)]
    for i, batch in enumerate(whole):
        parts = [share[i] for share in shares]
        assert torch.equal(batch.all_targets, batch.targets[batch.mask])
        assert all(torch.equal(p.all_targets, batch.all_targets) for p in parts)
        taken = [int(c) for p in parts for c in p.chain_ids[p.mask.any(dim=1)]]
        assert sorted(taken) == sorted(batch.chain_ids.tolist())
        theirs = torch.cat([p.targets[p.mask] for p in parts])
        assert sorted(theirs.tolist()) == sorted(batch.all_targets.tolist())


def test_a_process_that_torchrun_did_not_start_is_alone(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with join() as world:
        assert world is ALONE
        assert (world.main, world.share, world.tags()) == (True, (0, 1), {})
        assert world.broadcast(lambda: 3) == 3
        values = {"total": torch.tensor(2.0)}
        assert world.all_reduce(values) == values
