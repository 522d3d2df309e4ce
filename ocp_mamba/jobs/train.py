"""The training job: train a model, evaluate it, track it in MLflow and register it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ocp_mamba.data.analysis.leakage import LeakReport
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import EvidenceError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.latency import inference_latency
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.names import COSINE, ECHO, LATENCY, P1, TRAIN_MINUTES
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.artifacts import log_training
from ocp_mamba.jobs.baselines import (
    FULL,
    evaluate_cheap,
    log_baseline,
    train_and_evaluate,
    trained_gates,
)
from ocp_mamba.jobs.common import Log, check_dataset_and_log, evaluation_dataset, what_ran
from ocp_mamba.jobs.promotion.evidence import write_evidence
from ocp_mamba.jobs.train_job import TrainJob, prepare
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
from ocp_mamba.tracking.session import config_params, track
from ocp_mamba.tracking.store import ui_link
from ocp_mamba.tracking.text_registry import register_text
from ocp_mamba.training import alarms
from ocp_mamba.training.distributed import ALONE, World
from ocp_mamba.training.state import FitResult
from ocp_mamba.training.trainer import fit

SUMMARY_METRICS = (COSINE, P1, ECHO, TRAIN_MINUTES, LATENCY)
READY_TOLERANCE = 1e-5


@dataclass(frozen=True)
class TrainOutcome:
    """Results of a training run; ``version`` is None where the store did not take the model."""

    run_id: str
    fit: FitResult
    evaluation: Evaluation
    numbers: Mapping[str, float]
    gates: Mapping[str, str]
    version: ModelVersion | None


@dataclass(frozen=True)
class _Data:
    """The data of a training, and what is known of them before a model is trained.

    Attributes:
        dataset: to train on.
        evaluation_data: the same, or a sample of it where it is too large to be evaluated whole.
        index: of the bank of ``evaluation_data``.
        leaks: of ``evaluation_data``.
        baselines: evaluations on its val split, by name.
    """

    dataset: Dataset
    evaluation_data: Dataset
    index: BankIndex
    leaks: LeakReport
    baselines: Mapping[str, Evaluation]


def run_training(job: TrainJob, log: Log, world: World = ALONE) -> TrainOutcome:
    """Train, evaluate, track and register one model.

    Args:
        job: what to train.
        log: prints a line for a person.
        world: the processes that train together; this one is rank 0.

    Raises:
        DatasetError, ConfigError, BackendError: before the run is opened, see `prepare`.
        TrainingError, TrackingError, RegistryError: see their modules.
    """
    prepared = prepare(job, world, log)
    job, world = prepared.job, prepared.world
    data = _check_and_evaluate_baselines(job, prepared.dataset, log)
    torch.manual_seed(job.train.seed)
    model = build_model(job.model).to(world.device)
    params = {
        **config_params(model=job.model, train=job.train, eval=job.limits),
        **what_ran(model, data.dataset, job.train, job.backend),
        "ran.baselines": job.baselines,
        "ran.processes": world.size,
    }
    log(
        f"\nTraining {model.num_parameters():,} parameters, {params['ran.precision']}, "
        f"compile {params['ran.compile']}"
    )
    with track(
        data.dataset,
        job.data,
        output_dir=job.output.parent,
        experiment=job.experiment,
        run_name=job.run_name,
        params=params,
        tags={"metrics.version": METRICS_VERSION, **job.tags, **world.tags()},
        checkpoint_every=job.checkpoint_every,
        evaluated=data.evaluation_data,
    ) as run:
        for name, evaluation in data.baselines.items():
            log_baseline(run, name, evaluation)
        with world.name_lost_workers():
            fitted = fit(
                model,
                data.dataset,
                job.train,
                validate=validator(data.evaluation_data, data.index),
                output=job.output,
                resume=job.resume,
                on_epoch=run.on_epoch,
                progress=job.progress,
                world=world,
            )
        # evaluated on a CPU wherever it was trained, so that metrics compare between machines
        model = model.cpu().eval()
        return _evaluate_and_register(run, job, model, data, fitted, log, world.device)


def _check_and_evaluate_baselines(job: TrainJob, dataset: Dataset, log: Log) -> _Data:
    """Choose the data to evaluate on, check them for leaks, and evaluate the cheap baselines."""
    evaluation_data = evaluation_dataset(dataset, job.limits, log, job.progress)
    leaks = check_dataset_and_log(evaluation_data, log, job.train.min_context)
    index = BankIndex(evaluation_data.bank, "auto")
    log(f"Evaluating the baselines on {evaluation_data.n_examples('val'):,} validation sequences")
    baselines = evaluate_cheap(evaluation_data, index)
    log(baseline_table(baselines))
    give_back_freed()
    return _Data(dataset, evaluation_data, index, leaks, baselines)


def _evaluate_and_register(
    run: TrackedRun,
    job: TrainJob,
    model: OCPMambaLVM,
    data: _Data,
    fitted: FitResult,
    log: Log,
    device: torch.device,
) -> TrainOutcome:
    """Evaluate the best epoch, train baselines if asked, log the results, register the model."""
    evaluation = evaluate(model, data.evaluation_data, "val", name="model", index=data.index)
    timing = inference_latency(model) | {TRAIN_MINUTES: fitted.train_minutes}
    verdicts = _gates(job, model, data, fitted, evaluation)
    bundle = write_evidence(
        job.output.parent / run.run_id / "bundle",
        job.output,
        data.evaluation_data,
        run_id=run.run_id,
        evaluation=evaluation,
        gates=verdicts,
        fitted=fitted,
    )
    text_id = run.log_text_model(job.output, fitted.best_epoch, bundle)
    model_id = run.log_models(job.output, fitted.best_epoch, bundle)
    trained: dict[str, Evaluation] = {}
    if job.baselines == FULL:
        trained = train_and_evaluate(
            run,
            model,
            data.dataset,
            data.evaluation_data,
            data.index,
            job.train,
            job.output,
            log=log,
            progress=job.progress,
            device=device,
        )
    verdicts |= trained_gates(evaluation, trained)
    data = replace(data, baselines={**data.baselines, **trained})
    ceiling = data.leaks.figures().get("data/val_top1_ceiling")
    run.log_results(
        evaluation.headline() | timing | {"retrieval_top1_ceiling": ceiling},
        verdicts,
        evaluation.tags(),
        epoch=fitted.best_epoch,
    )
    numbers = evaluation.flat() | timing
    summary = "\n\n".join(
        [
            f"{epoch_table(fitted.history)}\n\n{alarms.listing(fitted.alarms)}",
            baseline_table({**data.baselines, "this model": evaluation}),
            result_table(numbers, verdicts, SUMMARY_METRICS),
        ]
    )
    report = _report(run, data, fitted, evaluation, verdicts)
    page = log_training(run, report, data.leaks, summary, job.output.parent / run.run_id)
    version = register_best(model_id) if model_id is not None else None
    if version is not None and text_id is not None:
        try:
            register_text(text_id, version)
        except EvidenceError as error:  # of another version, which has an alias
            log(f"WARNING: {error}")
    run.log_cost()
    log(f"\n{summary}")
    log(_where_to_look(run, job, version, page, data.evaluation_data))
    return TrainOutcome(run.run_id, fitted, evaluation, numbers, verdicts, version)


def _gates(
    job: TrainJob, model: OCPMambaLVM, data: _Data, fitted: FitResult, evaluation: Evaluation
) -> dict[str, str]:
    """The verdicts of all gates but those of trained baselines."""
    saved = load_checkpoint(job.output)
    return gates.evaluate_gates(
        evaluation,
        data.baselines,
        trends=[record.improvement_trend for record in fitted.history],
        train_minutes=fitted.train_minutes,
        inference_ready=_same_predictions(model, saved, data.evaluation_data),
        leaks=data.leaks.leaks,
        same_encoder=gates.same_encoder(saved.encoder, data.dataset.meta.get("encoder", {})),
    )


def _same_predictions(model: OCPMambaLVM, saved: Checkpoint, dataset: Dataset) -> bool:
    """Whether the saved file predicts what the model does, both in plain torch as when served."""
    loaded = saved.build_model()
    chain = torch.from_numpy(dataset.bank[dataset.chain(0)[:-1]])[None]
    tmd = None if dataset.chain_tmd is None else torch.from_numpy(dataset.chain_tmd[:1])
    steps = dataset.steps(np.arange(chain.shape[1])[None])
    given = conditions(model, tmd, None if steps is None else torch.from_numpy(steps))
    with kernels_off(), torch.inference_mode():
        return torch.allclose(loaded(chain, **given), model(chain, **given), atol=READY_TOLERANCE)


def _report(
    run: TrackedRun,
    data: _Data,
    fitted: FitResult,
    evaluation: Evaluation,
    verdicts: Mapping[str, str],
) -> Report:
    """The content of the run's page."""
    return Report(
        title=f"Training run {run.name}: epoch {fitted.best_epoch} on the val split",
        evaluation=evaluation,
        dataset=data.evaluation_data,
        baselines=data.baselines,
        gates=verdicts,
        facts={"run": run.run_id, "training": f"{fitted.train_minutes:.1f} minutes"},
        history=fitted.history,
        warnings=data.leaks.warnings,
    )


def _where_to_look(
    run: TrackedRun, job: TrainJob, version: ModelVersion | None, page: Path, dataset: Dataset
) -> str:
    """The paths and commands of the model file, the report, the served model and the UI."""
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
            f"ask it       ocp-mamba ask --model {uri} {_first_words(dataset)}",
        ]
    if command:
        lines.append(f"open the UI  {command}")
    return "\n".join([*lines, f"then look at {link}"])


def _first_words(dataset: Dataset) -> str:
    """The first two concepts of a val chain, quoted for a shell."""
    return shlex.join(str(dataset.texts[i]) for i in dataset.chain(dataset.chains_in("val")[0])[:2])
