"""A training by one process or by several: rank 0 runs the whole job, the others help to train."""

from __future__ import annotations

from dataclasses import replace

import torch

from ocp_mamba.errors import ConfigError
from ocp_mamba.jobs.common import Log
from ocp_mamba.jobs.train import run_training
from ocp_mamba.jobs.train_job import TrainJob, choose_device, prepare
from ocp_mamba.model.build import build_model
from ocp_mamba.system.process import stop_signals
from ocp_mamba.training.distributed import World, join
from ocp_mamba.training.run_folder import resumable
from ocp_mamba.training.trainer import fit

WORKER_SEED_STRIDE = 7_919


def run(job: TrainJob, log: Log) -> None:
    """Train as one of the processes that torchrun started, or as a single process.

    Raises:
        ConfigError: the batch is smaller than the number of processes.
        WorkerLostError: another process ended, or cannot be reached.
        DatasetError, BackendError, TrainingError, TrackingError, RegistryError: as `run_training`.
    """
    with join() as world:
        _require_enough_chains(job, world)
        job = _restarted(job, world, log)
        if not world.main:
            _assist(job, world)
            return
        run_training(job, log, world)


def _require_enough_chains(job: TrainJob, world: World) -> None:
    if job.train.batch_size < world.size:
        raise ConfigError(
            f"--batch-size {job.train.batch_size} is smaller than the {world.size} processes that "
            "share each batch; raise it, or start fewer processes"
        )


def _restarted(job: TrainJob, world: World, log: Log) -> TrainJob:
    """Resume from the last state, if there is one, under ``torchrun --max-restarts``."""
    left = world.broadcast(lambda: resumable(job.output, job.asked)) if world.may_restart else None
    if left is None:
        return job
    if world.main:
        log(f"restart {world.restarts} of this training by torchrun: going on from {left}")
    return replace(job, resume=True)


def _assist(job: TrainJob, world: World) -> None:
    """Train with this rank's share of every batch, until rank 0 ends the training."""
    with stop_signals(), world.name_lost_workers():
        world = choose_device(job, world)
        job, dataset = prepare(job, _no_log)
        model = build_model(job.model).to(world.device)
        torch.manual_seed(job.train.seed + WORKER_SEED_STRIDE * world.rank)  # for dropout
        fit(
            model,
            dataset,
            job.train,
            validate=_no_validation,
            output=job.output,
            progress=False,
            world=world,
        )


def _no_log(text: str) -> None:
    """Only rank 0 prints."""


def _no_validation(model: object) -> dict[str, float]:
    raise AssertionError("only rank 0 validates")
