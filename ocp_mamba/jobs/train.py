"""The training job: train a model, evaluate it, track it in MLflow and register it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ocp_mamba.data.analysis.leakage import LeakReport
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import ResumeError, TrainingError, WorkerLostError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.exposure import TrainedOn
from ocp_mamba.evaluation.latency import inference_latency
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.names import COSINE, ECHO, LATENCY, P1, TRAIN_MINUTES
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.artifacts import log_training, where_to_look
from ocp_mamba.jobs.baselines import (
    FULL,
    evaluate_cheap,
    learns_from,
    lines_of,
    log_baseline,
    train_and_evaluate,
    trained_gates,
)
from ocp_mamba.jobs.common import (
    Log,
    ceiling_tag,
    check_dataset_and_log,
    evaluation_dataset,
    logged_latency,
    what_ran,
)
from ocp_mamba.jobs.preconditions import constant_targets
from ocp_mamba.jobs.promotion.evidence import write_evidence
from ocp_mamba.jobs.train_job import TrainJob, choose_device, prepare
from ocp_mamba.kernels.cpu import kernels_off
from ocp_mamba.model.base import conditions
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.redact import redact
from ocp_mamba.reports.evaluation_page import Report
from ocp_mamba.reports.note import run_note
from ocp_mamba.reports.tables import baseline_table, epoch_table, result_table
from ocp_mamba.system.disk import require_space
from ocp_mamba.system.files import sha256_of
from ocp_mamba.system.malloc import give_back_freed
from ocp_mamba.tracking.registry import ModelVersion
from ocp_mamba.tracking.resumed import Opening, open_store, output_tag
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.session import config_params, track
from ocp_mamba.tracking.tags import NOTE
from ocp_mamba.training import alarms
from ocp_mamba.training.distributed import ALONE, World
from ocp_mamba.training.run_folder import Claim, RunFolder, claim, clean, resumable
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
        trained_on: what the model learns from; the strata of all evaluations are of that.
        baselines: evaluations on its val split, by name.
    """

    dataset: Dataset
    evaluation_data: Dataset
    index: BankIndex
    leaks: LeakReport
    trained_on: TrainedOn
    baselines: Mapping[str, Evaluation]


def run_training(job: TrainJob, log: Log, world: World = ALONE) -> TrainOutcome:
    """Train, evaluate, track and register one model.

    The run works in a folder of its own, ``<output's folder>/<run id>``; the output is written at
    the end. With ``job.resume`` an interrupted run of this output goes on, with what is missing,
    in its folder and its MLflow run; where there is none, a new one starts.

    Args:
        job: what to train.
        log: prints a line for a person.
        world: the processes that train together; this one is rank 0.

    Raises:
        BackendError: the device or the backend is forced and cannot be used; before all else.
        OutputError: the output cannot be written.
        ResumeError: the interrupted run has other settings, data or store, or still runs.
        EndedError: the training that is to be gone on with has ended.
        DatasetError, ConfigError: before the run is opened, see `prepare`.
        TrainingError, TrackingError, RegistryError: see their modules.
    """
    world = choose_device(job, world)
    with claim(job.output, job.asked, resume=job.resume) as mine:
        try:
            return _run(job, mine, log, world)
        except WorkerLostError as error:
            raise WorkerLostError(f"{error}; {_way_out(mine, world)}") from error
        except ResumeError:
            raise
        except BaseException:
            if mine.folder is not None:
                log(f"\n{mine.folder.way_on()}")
            raise


def _run(job: TrainJob, mine: Claim, log: Log, world: World) -> TrainOutcome:
    opening = _open(job, mine, log)
    job, dataset = prepare(job, log)
    fingerprint = dataset.fingerprint
    mine.require_not_done(fingerprint)
    if mine.folder is not None:
        mine.folder.require_dataset(fingerprint, job.data)
    data = _check_and_evaluate_baselines(job, dataset, log)
    torch.manual_seed(job.train.seed)
    model = build_model(job.model).to(world.device)
    require_space(job.output, model.num_parameters())
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
    begun = {"dataset": fingerprint, "store": redact(opening.store)}
    with track(
        data.dataset,
        job.data,
        output_dir=job.output.parent,
        experiment=job.experiment,
        run_name=job.run_name,
        params=params,
        tags={
            "metrics.version": METRICS_VERSION,
            **output_tag(job.output),
            **job.tags,
            **world.tags(),
        },
        checkpoint_every=job.checkpoint_every,
        evaluated=data.evaluation_data,
        resume=opening.run_id,
        folder_of=lambda run_id: mine.make(run_id, **begun).path,
    ) as run:
        folder = mine.made
        for name, evaluation in data.baselines.items():
            log_baseline(run, name, evaluation)
        run.compare_with(lines_of(data.baselines))
        with world.name_lost_workers():
            fitted = fit(
                model,
                data.dataset,
                job.train,
                validate=validator(data.evaluation_data, data.index),
                output=folder.best,
                resume=folder.state.exists(),
                save_seconds=60 * job.save_minutes or math.inf,
                on_resume=run.on_resume,
                on_epoch=run.on_epoch,
                progress=job.progress,
                world=world,
            )
        run.log_params({"ran.capture": fitted.capture})
        # evaluated on a CPU wherever it was trained, so that metrics compare between machines
        model = model.cpu().eval()
        outcome = _evaluate_and_register(run, job, folder, model, data, fitted, log, world.device)
        folder.publish()
        log(
            where_to_look(
                run, job.output, outcome.version, folder.path / "report.html", data.evaluation_data
            )
        )
    folder.finish()
    return outcome


def _open(job: TrainJob, mine: Claim, log: Log) -> Opening:
    """Open the store, say what is gone on with, and clean up what killed trainings have left."""
    record = mine.folder.record if mine.folder is not None else None
    begun = (record["run_id"], record["store"]) if record else None
    opening = open_store(job.output, begun, resume=job.resume)
    if mine.folder is not None:
        state = mine.folder.state
        how = f"from {state}" if state.exists() else "from the start: it has no state yet"
        log(f"--resume: run {opening.run_id} goes on {how}")
    elif job.resume and mine.done is None:
        log(f"--resume: no interrupted training of {job.output} is left; a new one starts")
    elif (left := resumable(job.output, job.asked)) is not None:
        log(f"An interrupted training of this output is left in {left}: --resume goes on with it")
    for run in opening.ended:
        log(f"ended run {run.run_id} ({run.name}), which was left RUNNING: {run.reason}")
    for path in clean(job.output.parent):
        log(f"removed {path}, which a killed training has left")
    return opening


def _way_out(mine: Claim, world: World) -> str:
    """What a person can do after a process was lost."""
    if mine.folder is None or not mine.folder.state.exists():
        return "there is no state to resume from yet: start again with --resume"
    if world.may_restart:
        return f"torchrun starts again from {mine.folder.state} while it has restarts left"
    return f"the last state is in {mine.folder.state}: go on with --resume, any number of processes"


def _check_and_evaluate_baselines(job: TrainJob, dataset: Dataset, log: Log) -> _Data:
    """Choose the data to evaluate on, check them for leaks, and evaluate the cheap baselines."""
    evaluation_data = evaluation_dataset(dataset, job.limits, log, job.progress)
    leaks = check_dataset_and_log(evaluation_data, log, job.train.min_context)
    index = BankIndex(evaluation_data.bank, "auto")
    for warning in constant_targets(evaluation_data):
        log(f"WARNING: {warning}")
    log(f"Evaluating the baselines on {evaluation_data.n_examples('val'):,} validation sequences")
    trained_on = learns_from(dataset, job.train.min_context)
    baselines = evaluate_cheap(evaluation_data, index, trained_on)
    log(baseline_table(baselines))
    give_back_freed()
    return _Data(dataset, evaluation_data, index, leaks, trained_on, baselines)


def _evaluate_and_register(
    run: TrackedRun,
    job: TrainJob,
    folder: RunFolder,
    model: OCPMambaLVM,
    data: _Data,
    fitted: FitResult,
    log: Log,
    device: torch.device,
) -> TrainOutcome:
    """Evaluate the best epoch, train baselines if asked, log the results, register the model.

    What was evaluated is what the folder's ``.pt`` holds, and only a file with its SHA-256 is
    stored and registered.
    """
    saved, sha256 = _saved(folder.best, model)
    evaluation = evaluate(
        model,
        data.evaluation_data,
        "val",
        name="model",
        index=data.index,
        trained_on=data.trained_on,
    )
    timing = inference_latency(model) | {TRAIN_MINUTES: fitted.train_minutes}
    verdicts = _gates(saved, model, data, fitted, evaluation)
    bundle = write_evidence(
        folder.path / "bundle",
        folder.best,
        data.evaluation_data,
        run_id=run.run_id,
        evaluation=evaluation,
        gates=verdicts,
        fitted=fitted,
        min_context=job.train.min_context,
    )
    run.log_models(folder.best, fitted.best_epoch, bundle, sha256)
    trained: dict[str, Evaluation] = {}
    if job.baselines == FULL:
        trained = train_and_evaluate(
            run,
            model,
            data.dataset,
            data.evaluation_data,
            data.index,
            data.trained_on,
            job.train,
            folder.best,
            log=log,
            progress=job.progress,
            device=device,
        )
    verdicts |= trained_gates(evaluation, trained)
    data = replace(data, baselines={**data.baselines, **trained})
    report = _report(run, data, fitted, evaluation, verdicts)
    run.log_results(
        evaluation.headline() | logged_latency(timing) | {TRAIN_MINUTES: fitted.train_minutes},
        verdicts,
        evaluation.tags() | ceiling_tag(data.leaks, "val") | {NOTE: run_note(report)},
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
    log_training(run, report, data.leaks, summary, folder.path)
    run.log_cost()
    version = run.register(fitted.best_epoch, job.model_name, alias_anyway=job.alias_anyway)
    log(f"\n{summary}")
    return TrainOutcome(run.run_id, fitted, evaluation, numbers, verdicts, version)


def _saved(best: Path, model: OCPMambaLVM) -> tuple[Checkpoint, str]:
    """The best epoch's file and its SHA-256, if it holds the model's weights.

    Raises:
        TrainingError: it holds others.
    """
    sha256 = sha256_of(best)
    saved = load_checkpoint(best)
    weights = model.state_dict()
    if saved.state_dict.keys() != weights.keys() or not all(
        torch.equal(saved.state_dict[name], weights[name]) for name in weights
    ):
        raise TrainingError(
            f"{best} does not hold the weights of the best epoch: another process wrote to it; "
            "nothing was registered"
        )
    return saved, sha256


def _gates(
    saved: Checkpoint, model: OCPMambaLVM, data: _Data, fitted: FitResult, evaluation: Evaluation
) -> dict[str, str]:
    """The verdicts of all gates but those of trained baselines."""
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
