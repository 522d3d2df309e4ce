"""What a training is started with, and its preparation, the same in each of its processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.analysis.sample import EvalLimits
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import BackendError
from ocp_mamba.jobs.baselines import CHEAP
from ocp_mamba.jobs.common import Log, open_data
from ocp_mamba.jobs.preconditions import require_trainable, with_relations
from ocp_mamba.kernels.backend import resolve_device, use_backend
from ocp_mamba.tracking.registry.aliases import MODEL_NAME
from ocp_mamba.tracking.session import EXPERIMENT
from ocp_mamba.training.asked import asked_for
from ocp_mamba.training.distributed import World

SAVE_MINUTES = 10.0
"""Minutes of training that a kill may cost, by default."""


@dataclass(frozen=True)
class TrainJob:
    """Everything that a training run is started with.

    Attributes:
        data: a dataset file, a folder of shards, or an older npz.
        output: the ``.pt`` to write at the end; all else is in the run's folder beside it.
        model: shape of the model.
        train: settings of the training.
        relations: whether the model takes the dataset's relations.
        device: one of `backend.DEVICES`.
        backend: one of `backend.BACKENDS`.
        baselines: "cheap", or "full" to train a GRU and a Transformer too.
        experiment: of the MLflow run.
        run_name: of the MLflow run; None lets MLflow invent one.
        limits: sizes up to which data are evaluated whole.
        checkpoint_every: store a whole model every so many epochs; 0 for the best and the last.
        resume: go on with an interrupted training of this output, if there is one.
        save_minutes: write the state to resume from at least every so many minutes; 0 at the end
            of epochs only.
        allow_pickle: see `open_data`.
        progress: show a progress bar.
        tags: further tags of the MLflow run.
        model_name: the registered model that gets a new version.
        alias_anyway: move the alias ``candidate`` to it whatever its gates say.
    """

    data: Path
    output: Path
    model: ModelConfig
    train: TrainConfig
    relations: bool = False
    device: str = "auto"
    backend: str = "auto"
    baselines: str = CHEAP
    experiment: str = EXPERIMENT
    run_name: str | None = None
    limits: EvalLimits = field(default_factory=EvalLimits)
    checkpoint_every: int = 0
    resume: bool = False
    save_minutes: float = SAVE_MINUTES
    allow_pickle: bool = False
    progress: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)
    model_name: str = MODEL_NAME
    alias_anyway: bool = False

    @property
    def asked(self) -> dict[str, Any]:
        """The settings that an interrupted training must have to be gone on with."""
        return asked_for(
            self.model,
            self.train,
            relations=self.relations,
            experiment=self.experiment,
            limits=asdict(self.limits),
        )


def prepare(job: TrainJob, log: Log) -> tuple[TrainJob, Dataset]:
    """Open the data and complete the settings.

    Every process of a training calls this, so that all train the same model by the same code.

    Returns:
        The job with the dataset's relations in the model's shape, where they were asked for, and
        the dataset, which has what the model is trained with.

    Raises:
        DatasetError, ConfigError: see `open_data`, `with_relations` and `require_trainable`.
    """
    dataset = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    if job.relations:
        job = replace(job, model=with_relations(job.model, dataset, job.data))
    require_trainable(dataset, job.data, job.model)
    return job, dataset


def choose_device(job: TrainJob, world: World) -> World:
    """Choose the device and the backend, and return the world with that device.

    Every process of a training calls this before all else. torchrun's processes have their device
    already.

    Raises:
        BackendError: the device or the backend is forced and cannot be used.
    """
    if world.size == 1:
        world = replace(world, device=resolve_device(job.device))
    elif job.device not in ("auto", world.device.type):
        raise BackendError(
            f"device {job.device!r} was forced, but torchrun's processes compute on "
            f"{world.device.type}; leave --device out"
        )
    use_backend(job.backend, world.device)
    return world
