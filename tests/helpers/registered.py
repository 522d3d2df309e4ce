"""Registered versions for tests: a dataset that a tiny model masters, and a training of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from data_maker import TINY, make_dataset

from ocp_mamba.config import D_VECTOR, ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.jobs.train import TrainJob, TrainOutcome, run_training

GOOD = TrainConfig(
    batch_size=16, max_epochs=24, lr=1e-2, precision="float32", compile="off", threads=0
)
"""Enough for a model that passes every gate on `learnable`."""


def learnable(n_chains: int = 150, seed: int = 0, **replaced: Any) -> Dataset:
    """Chains in which each concept is a reflection of the one before the last.

    Two free concepts begin a chain, so that the last one alone says nothing of the next: a model
    that looks two back wins, and ridge and the nearest neighbour lose. Most transitions of val are
    not in train.
    """
    n, width, length = 24, 8, 8
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.standard_normal((width, width)))[0][:, :3]
    reflection = np.eye(width) - 2 * directions @ directions.T
    half = rng.standard_normal((n // 2, width))
    basis = np.linalg.qr(rng.standard_normal((D_VECTOR, width)))[0]
    bank = np.concatenate([half, half @ reflection]) @ basis.T
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    first = rng.permutation(n * n)[:n_chains]
    chains = np.empty((n_chains, length), np.int32)
    chains[:, 0], chains[:, 1] = first // n, first % n
    for at in range(2, length):
        chains[:, at] = (chains[:, at - 2] + n // 2) % n
    split = np.repeat([0, 1, 2], [int(n_chains * 0.6), int(n_chains * 0.25), 0])
    fields = {
        "bank": bank.astype(np.float32),
        "chain_values": chains.ravel(),
        "chain_offsets": np.arange(n_chains + 1, dtype=np.int64) * length,
        "split": np.append(split, np.full(n_chains - len(split), 2)).astype(np.uint8),
    }
    return make_dataset(n_chains, n, seed, tmd=False, **fields | replaced)


def train_version(
    data: Path,
    folder: Path,
    train: TrainConfig = GOOD,
    said: list[str] | None = None,
    **settings: Any,
) -> TrainOutcome:
    """Train on a dataset file as `ocp-mamba train` does, into the store in use.

    Args:
        data: the file.
        folder: to write to.
        train: settings of the training.
        said: gets what is printed.
        settings: further fields of the job.
    """
    said = [] if said is None else said
    job = TrainJob(
        data=data,
        output=folder / "model.pt",
        model=ModelConfig(**TINY),
        train=train,
        progress=False,
        **settings,
    )
    return run_training(job, said.append)
