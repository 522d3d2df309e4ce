"""A whole sweep: open the data and the study, run trials, and retrain the best if asked to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import optuna

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import JobError, SweepError
from ocp_mamba.jobs.common import open_data
from ocp_mamba.jobs.preconditions import require_trainable, with_relations
from ocp_mamba.jobs.train import TrainJob, run_training
from ocp_mamba.sweep.attempts import first_number
from ocp_mamba.sweep.defaults import OBJECTIVES
from ocp_mamba.sweep.report import best_beside_baselines
from ocp_mamba.sweep.space import DEFAULT_SPACE, load_space
from ocp_mamba.sweep.storage import SweepStorage, default_journal, open_storage
from ocp_mamba.sweep.study import Sweep, SweepSettings, join, start, study_data
from ocp_mamba.sweep.worker import Worker, work
from ocp_mamba.system.paths import caller_folder
from ocp_mamba.system.process import mlflow_run_ancestor, stop_signals
from ocp_mamba.tracking.session import EXPERIMENT, RUN_VARIABLE
from ocp_mamba.tracking.store import ui_link, use_store

Log = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """The settings of a new study; None stands for a default.

    With ``relations`` every model uses the dataset's relations.
    """

    objectives: tuple[str, ...]
    space: Path | None
    model: ModelConfig
    train: TrainConfig
    pruner: str | None
    trial_seconds: float
    warm_start: tuple[str, ...]
    experiment: str | None
    relations: bool = False


@dataclass(frozen=True)
class SweepJob:
    """All settings of a worker; ``wanted`` is None for one that joins a study."""

    study: str
    wanted: Wanted | None
    n_trials: int | None
    storage: str | None
    data: Path | None
    output: Path
    grace: int
    timeout: float
    threads: int
    retrain: bool
    retrain_epochs: int | None
    allow_pickle: bool
    progress: bool


def space_text(path: str | None) -> str:
    """Return the text of a valid search space, by default the package's."""
    return load_space(Path(path) if path else DEFAULT_SPACE).text


def run_sweep(job: SweepJob, log: Log) -> Sweep:
    """Run a study's trials until it has all of them or this worker's time is over.

    Raises:
        SweepError, StorageError, SpaceError, DatasetError, TrackingError: see `ocp_mamba.errors`.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = _settings(job.wanted) if job.wanted else None
    store = use_store()
    address = job.storage or str(default_journal(store, caller_folder()))
    storage = open_storage(address, tracking_uri=store, grace=job.grace)
    data = job.data or study_data(job.study, storage)
    dataset = open_data(data, allow_pickle=job.allow_pickle, log=log)
    if settings is not None and job.wanted is not None:
        if job.wanted.relations:
            model = with_relations(settings.model, dataset, data)
            settings = replace(settings, model=model)
        require_trainable(dataset, data, settings.model)
    watched = mlflow_run_ancestor() if os.environ.get(RUN_VARIABLE) else None
    with stop_signals(watched), storage.named_errors():
        sweep = _open(job, settings, storage, data, dataset, store, log)
        _require_data(sweep, dataset, data)
        log(f"study {job.study} in {storage.shown}, {sweep.counts().done} of {sweep.n_trials} "
             f"trials; objectives {', '.join(sweep.settings.objectives)}, "
             f"pruner {sweep.settings.pruner}")  # fmt: skip
        if sweep.counts().done >= sweep.n_trials:
            log("nothing left to try; for more trials: --n-trials")
        folder = job.output / job.study
        worker = Worker(dataset, data, folder, store, job.timeout, job.threads, log, job.progress)
        work(sweep, worker)
        log(_result(sweep, folder))
        if job.retrain:
            _retrain(sweep, job, data, log)
    return sweep


def _settings(wanted: Wanted) -> SweepSettings:
    """Return the complete, checked settings of a new study."""
    unknown = [o for o in wanted.objectives if o not in OBJECTIVES]
    if unknown or len(set(wanted.objectives)) < len(wanted.objectives):
        raise SweepError(
            f"objectives: found {', '.join(wanted.objectives)}, wanted each once of "
            f"{', '.join(OBJECTIVES)}"
        )
    several = len(wanted.objectives) > 1
    if several and wanted.pruner not in (None, "none"):
        raise SweepError(
            f"--pruner {wanted.pruner}: Optuna prunes studies of one objective only; leave the "
            "pruner out, or all objectives but one"
        )
    space = load_space(wanted.space or DEFAULT_SPACE)
    space.check(wanted.model, wanted.train)
    return SweepSettings(
        data="",
        fingerprint="",
        objectives=wanted.objectives,
        space_name=space.name,
        space=space.text,
        model=wanted.model,
        train=replace(wanted.train, threads=0),
        pruner=wanted.pruner or ("none" if several else "asha"),
        trial_seconds=wanted.trial_seconds,
        experiment=wanted.experiment or EXPERIMENT,
    )


def _open(
    job: SweepJob,
    settings: SweepSettings | None,
    storage: SweepStorage,
    data: Path,
    dataset: Dataset,
    store: str,
    log: Log,
) -> Sweep:
    if settings is None or job.wanted is None:
        return join(job.study, storage, n_trials=job.n_trials, store=store)
    settings = replace(settings, data=str(data), fingerprint=dataset.fingerprint)
    return start(
        job.study,
        storage,
        settings,
        dataset,
        n_trials=job.n_trials,
        warm_start=job.wanted.warm_start,
        store=store,
        log=log,
    )


def _require_data(sweep: Sweep, dataset: Dataset, data: Path) -> None:
    wanted = sweep.settings.fingerprint
    if dataset.fingerprint != wanted:
        raise JobError(
            f"{data} is dataset {dataset.fingerprint[:12]}, the study's is {wanted[:12]} "
            f"({Path(sweep.settings.data).name}); give that one with --data"
        )


def _result(sweep: Sweep, folder: Path) -> str:
    """The best trial, its configuration, and the link to the UI."""
    counts, best = sweep.counts(), sweep.best()
    lines = [
        f"\n{counts.finished} finished, {counts.pruned} pruned, {counts.failed} failed trials"
        + (f", {counts.running} running elsewhere" if counts.running else "")
    ]
    if best is None:
        lines.append("best         not-run: no trial finished")
    else:
        names = sweep.settings.objectives
        values = ", ".join(f"{k} {v:.4f}" for k, v in zip(names, best.values, strict=True))
        lines.append(f"best         trial {first_number(best)}: {values} on the val split")
        lines.append(f"\n{best_beside_baselines(sweep, best)}\n")
        lines += [f"  {k:24} {v:g}" if isinstance(v, float) else f"  {k:24} {v}"
                  for k, v in best.params.items()]  # fmt: skip
        if len(names) > 1:
            front = sorted(first_number(t) for t in sweep.study.best_trials)
            lines.append(f"Pareto front trials {', '.join(map(str, front))}")
        lines.append(f"as a file    {folder / 'best.toml'}: ocp-mamba train --config")
    link, command = ui_link(sweep.parent.store, sweep.parent.experiment_id, sweep.parent.run_id)
    if command:
        lines.append(f"open the UI  {command}")
    return "\n".join([*lines, f"then look at {link}"])


def _retrain(sweep: Sweep, job: SweepJob, data: Path, log: Log) -> None:
    """Train the best configuration again, as `ocp-mamba train` does, and register the model."""
    best = sweep.best()
    if best is None:
        raise SweepError("--retrain-best: no trial has finished, so there is no best one")
    model, train = sweep.configs(best)
    epochs = job.retrain_epochs or max(train.max_epochs, TrainConfig().max_epochs)
    name = f"best of {job.study}"
    log(f"\nTraining the configuration of trial {first_number(best)} again, {epochs} epochs")
    outcome = run_training(
        TrainJob(
            data=data,
            output=job.output / job.study / "best.pt",
            model=model,
            train=replace(train, max_epochs=epochs, threads=job.threads),
            experiment=sweep.parent.experiment,
            run_name=name,
            allow_pickle=job.allow_pickle,
            progress=job.progress,
            tags={
                "sweep.study": job.study,
                "sweep.parent": sweep.parent.run_id,
                "sweep.best_trial": str(first_number(best)),
            },
        ),
        log,
    )
    registered = outcome.version
    sweep.parent.log(
        tags={
            "best.retrained_run": outcome.run_id,
            "best.registered": (
                f"{registered.name} version {registered.version}" if registered else "not-run"
            ),
        }
    )
