"""The main job, whole: train, evaluate, track and register a model; and the check of a dataset.

This is where training and evaluation, which know no tracker, meet MLflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.analysis.leakage import LeakReport
from ocp_mamba.data.analysis.sample import EvalLimits
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import BackendError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.latency import inference_latency
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.names import COSINE, ECHO, LATENCY, P1, TRAIN_MINUTES
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.artifacts import log_training
from ocp_mamba.jobs.baselines import (
    CHEAP,
    FULL,
    evaluate_cheap,
    log_baseline,
    train_and_evaluate,
    trained_gates,
)
from ocp_mamba.jobs.common import (
    Log,
    check_dataset_and_log,
    evaluation_dataset,
    open_data,
    what_ran,
)
from ocp_mamba.jobs.preconditions import require_trainable, with_relations
from ocp_mamba.kernels.backend import resolve_device, use_backend
from ocp_mamba.kernels.cpu import kernels_off
from ocp_mamba.model.base import conditions
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.reports.evaluation_page import Report
from ocp_mamba.reports.tables import baseline_table, epoch_table, result_table
from ocp_mamba.system.malloc import give_back_freed
from ocp_mamba.tracking.registry import CANDIDATE, ModelVersion, register_best
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.session import EXPERIMENT, config_params, track
from ocp_mamba.tracking.store import ui_link
from ocp_mamba.training import alarms
from ocp_mamba.training.distributed import ALONE, World
from ocp_mamba.training.state import FitResult
from ocp_mamba.training.trainer import fit

SHOWN = (COSINE, P1, ECHO, TRAIN_MINUTES, LATENCY)
"""The numbers that the summary shows."""
READY_TOLERANCE = 1e-5


@dataclass(frozen=True)
class TrainJob:
    """Everything that a training run is started with.

    ``baselines`` is "cheap" or "full". ``evaluate`` says up to what size data are evaluated whole.
    ``relations`` has the model know the dataset's relations.
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
    allow_pickle: bool = False
    progress: bool = True
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainOutcome:
    """What a training run came to; ``version`` is None where the store did not take the model."""

    run_id: str
    fit: FitResult
    evaluation: Evaluation
    numbers: Mapping[str, float]
    gates: Mapping[str, str]
    version: ModelVersion | None


def run_training(job: TrainJob, log: Log, world: World = ALONE) -> TrainOutcome:
    """Train, evaluate, track and register one model.

    Args:
        job: what to train.
        echo: takes what a person should read.
        world: the processes that train together; this one is rank 0.

    Raises:
        DatasetError, ConfigError, TrainingError, TrackingError, RegistryError: see their modules.
    """
    dataset = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    if job.relations:
        job = replace(job, model=with_relations(job.model, dataset, job.data))
    require_trainable(dataset, job.data, job.model)
    evaluated = evaluation_dataset(dataset, job.limits, log, job.progress)
    prepared = _check_and_evaluate_baselines(dataset, evaluated, job.train.min_context, log)
    torch.manual_seed(job.train.seed)
    model = build_model(job.model)
    world = _placed(job, world)
    model.to(world.device)
    params = config_params(model=job.model, train=job.train, limits=job.limits)
    params |= what_ran(model, dataset, job.train)
    params["ran.backend"] = use_backend(job.backend, world.device)
    params |= {"ran.baselines": job.baselines, "ran.processes": world.size}
    log(
        f"\nTraining {model.num_parameters():,} parameters, {params['ran.precision']}, "
        f"compile {params['ran.compile']}"
    )
    with track(
        dataset,
        job.data,
        output_dir=job.output.parent,
        experiment=job.experiment,
        run_name=job.run_name,
        params=params,
        tags={"metrics.version": METRICS_VERSION} | dict(job.tags) | world.tags(),
        checkpoint_every=job.checkpoint_every,
        evaluated=prepared.evaluated,
    ) as run:
        for name, evaluation in prepared.baselines.items():
            log_baseline(run, name, evaluation)
        with world.name_lost_workers():
            fitted = fit(
                model,
                dataset,
                job.train,
                validate=validator(prepared.evaluated, prepared.index),
                output=job.output,
                resume=job.resume,
                on_epoch=run.on_epoch,
                progress=job.progress,
                world=world,
            )
        # Evaluated on the CPU wherever it was trained, so that figures compare between machines.
        return _conclude(run, job, model.cpu().eval(), prepared, fitted, log, world.device)


@dataclass(frozen=True)
class _Prepared:
    """What is known of a dataset, and of what is evaluated of it, before a model is trained on it."""

    dataset: Dataset
    evaluated: Dataset
    index: BankIndex
    leaks: LeakReport
    baselines: Mapping[str, Evaluation]


def _check_and_evaluate_baselines(
    dataset: Dataset, evaluated: Dataset, min_context: int, log: Log
) -> _Prepared:
    """Log the leaks into what is evaluated, and evaluate the baselines on its val split."""
    leaks = check_dataset_and_log(evaluated, log, min_context)
    index = BankIndex(evaluated.bank, "auto")
    log(f"Evaluating the baselines on {evaluated.n_examples('val'):,} validation sequences")
    baselines = evaluate_cheap(evaluated, index)
    log(baseline_table(baselines))
    give_back_freed()
    return _Prepared(dataset, evaluated, index, leaks, baselines)


def _placed(job: TrainJob, world: World) -> World:
    """The world with the device that was asked for; torchrun's processes have theirs already.

    Raises:
        BackendError: the device is forced and cannot be had.
    """
    if world.size == 1:
        return replace(world, device=resolve_device(job.device))
    if job.device not in ("auto", world.device.type):
        raise BackendError(
            f"device {job.device!r} was forced, but torchrun's processes compute on "
            f"{world.device.type}; leave --device out"
        )
    return world


def _conclude(
    run: TrackedRun,
    job: TrainJob,
    model: OCPMambaLVM,
    prepared: _Prepared,
    fitted: FitResult,
    log: Log,
    device: torch.device,
) -> TrainOutcome:
    """Evaluate the best epoch, train baselines if asked, log all, register, say where to look."""
    evaluated = evaluate(model, prepared.evaluated, "val", name="model", index=prepared.index)
    saved = load_checkpoint(job.output)
    minutes = fitted.train_minutes
    timing = inference_latency(model) | {TRAIN_MINUTES: minutes}
    numbers = evaluated.flat() | timing
    verdicts = gates.evaluate_gates(
        evaluated,
        prepared.baselines,
        trends=[record.improvement_trend for record in fitted.history],
        train_minutes=minutes,
        inference_ready=_same_predictions(model, saved, prepared.evaluated),
        leaks=prepared.leaks.leaks,
        same_encoder=gates.same_encoder(saved.encoder, prepared.dataset.meta.get("encoder", {})),
    )
    model_id = run.log_models(job.output, fitted.best_epoch)
    trained: dict[str, Evaluation] = {}
    if job.baselines == FULL:
        trained = train_and_evaluate(
            run,
            model,
            prepared.dataset,
            prepared.evaluated,
            prepared.index,
            job.train,
            job.output,
            log=log,
            progress=job.progress,
            device=device,
        )
    verdicts |= trained_gates(evaluated, trained)
    prepared = replace(prepared, baselines={**prepared.baselines, **trained})
    run.log_results(
        evaluated.headline()
        | timing
        | {"retrieval_top1_ceiling": prepared.leaks.figures().get("data/val_top1_ceiling")},
        verdicts,
        evaluated.tags(),
        epoch=fitted.best_epoch,
    )
    summary = "\n\n".join(
        [
            f"{epoch_table(fitted.history)}\n\n{alarms.listing(fitted.alarms)}",
            baseline_table({**prepared.baselines, "this model": evaluated}),
            result_table(numbers, verdicts, SHOWN),
        ]
    )
    report = Report(
        title=f"Training run {run.name}: epoch {fitted.best_epoch} on the val split",
        evaluation=evaluated,
        dataset=prepared.evaluated,
        baselines=prepared.baselines,
        gates=verdicts,
        facts={"run": run.run_id, "training": f"{minutes:.1f} minutes"},
        history=fitted.history,
        warnings=prepared.leaks.warnings,
    )
    page = log_training(run, report, prepared.leaks, summary, job.output.parent / run.run_id)
    version = register_best(model_id) if model_id is not None else None
    run.log_cost()
    log(f"\n{summary}")
    log(_where_to_look(run, job, version, page))
    return TrainOutcome(run.run_id, fitted, evaluated, numbers, verdicts, version)


def _same_predictions(model: OCPMambaLVM, saved: Checkpoint, dataset: Dataset) -> bool:
    """Whether the saved file, loaded again, predicts what the model does, computed as served."""
    loaded = saved.build_model()
    chain = torch.from_numpy(dataset.bank[dataset.chain(0)[:-1]])[None]
    tmd = None if dataset.chain_tmd is None else torch.from_numpy(dataset.chain_tmd[:1])
    steps = dataset.steps(np.arange(chain.shape[1])[None])
    taken = conditions(model, tmd, None if steps is None else torch.from_numpy(steps))
    with kernels_off(), torch.inference_mode():
        return torch.allclose(loaded(chain, **taken), model(chain, **taken), atol=READY_TOLERANCE)


def _where_to_look(run: TrackedRun, job: TrainJob, version: ModelVersion | None, page: Path) -> str:
    link, command = ui_link(run.store, run.experiment_id)
    lines = [f"\nmodel file   {job.output}", f"report       {page}"]
    if version is None:
        lines.append("registered   not-run: the store did not take the model, see below")
    else:
        uri = f"models:/{version.name}@{CANDIDATE}"
        lines += [
            f"registered   {version.name} version {version.version}, alias {CANDIDATE}",
            f"serve it     MLFLOW_TRACKING_URI={run.store} \\\n"
            f"               mlflow models serve -m {uri} --env-manager local --port 5001",
        ]
    if command:
        lines.append(f"open the UI  {command}")
    return "\n".join([*lines, f"then look at {link}"])


def with_stopping(config: TrainConfig, early: bool | None, patience: int | None) -> TrainConfig:
    """Apply the early-stopping flags: off is patience 0, on without a patience keeps or takes 3."""
    if early is False:
        return replace(config, patience=0)
    if patience is not None:
        return replace(config, patience=patience)
    return replace(config, patience=config.patience or 3) if early else config
