"""One worker of a sweep: it begins trials and trains them until the study has all of them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from optuna import TrialPruned
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from ocp_mamba.baselines.simple import cheap_baselines
from ocp_mamba.data.analysis.sample import EvalLimits, evaluation_part, sample_of
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import SweepError, TrackingError, first_line
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.jobs.common import what_ran
from ocp_mamba.model.build import build_model
from ocp_mamba.redact import redact
from ocp_mamba.sweep.attempts import first_number, history
from ocp_mamba.sweep.defaults import OBJECTIVES, STARTUP_TRIALS
from ocp_mamba.sweep.report import Progress, SweepReport
from ocp_mamba.sweep.runs import TrialRun, open_trial_run
from ocp_mamba.sweep.study import RUN_ID, WARM_START, Sweep, SweepSettings
from ocp_mamba.system.process import Killed, undisturbed
from ocp_mamba.tracking.session import config_params
from ocp_mamba.tracking.store import STORE_FAILURES
from ocp_mamba.training.state import EpochResult, FitResult
from ocp_mamba.training.trainer import fit

MAX_FAILURES = 3
"""Failed trials in a row after which a worker gives up."""

STORE_OR_STORAGE_FAILURES: tuple[type[Exception], ...] = (*STORE_FAILURES, StorageInternalError)
"""The errors that MLflow's and Optuna's stores raise when they do not answer."""

LONGEST_WAIT = 5.0
STATE_TAG = "sweep.state"
FINISHED, PRUNED, FAILED, LOST = "finished", "pruned", "failed", "lost"


class _LostError(Exception):
    """Another worker has taken this trial over."""


class _TimeUpError(TrialPruned):
    """The time limit of the trial is over."""


@dataclass(frozen=True)
class Worker:
    """The settings of one worker: its data, output folder, time limit and threads."""

    dataset: Dataset
    data: Path
    output: Path
    store: str
    timeout: float
    threads: int
    log: Callable[[str], None]
    progress: bool


def work(sweep: Sweep, worker: Worker) -> None:
    """Run trials until the study has its number of them, or this worker's time is over.

    A worker that finds no trial to begin waits for the last trials of the others, and takes over
    the trial of one that dies.

    Raises:
        SweepError: too many trials failed one after another.
    """
    until = time.monotonic() + worker.timeout if worker.timeout else math.inf
    evaluated = evaluation_part(worker.dataset, EvalLimits(), progress=worker.progress)
    if sample_of(evaluated):
        worker.log(
            f"the dataset is too large to evaluate all of it; trials are evaluated on "
            f"{sample_of(evaluated)}"
        )
    validate = validator(evaluated, BankIndex(evaluated.bank))
    sweep.note_baselines(lambda: _baselines(evaluated, validate))
    report = SweepReport(sweep, worker.output)
    ended = ("FINISHED", "time limit")
    try:
        with Progress(sweep, worker.log, enabled=worker.progress) as progress:
            _loop(sweep, worker, validate, report, progress, until)
    except (KeyboardInterrupt, Killed) as error:
        ended = ("KILLED", error.reason if isinstance(error, Killed) else "Ctrl-C")
        raise
    except BaseException as error:
        ended = ("FAILED", f"{type(error).__name__}: {first_line(error)}")
        raise
    finally:
        with undisturbed():
            _leave(sweep, report, *ended)


def _baselines(
    evaluated: Dataset, validate: Callable[[Any], dict[str, float]]
) -> dict[str, dict[str, float]]:
    """What the baselines without a gradient reach where the trials are validated."""
    found = {name: validate(predictor) for name, predictor in cheap_baselines(evaluated).items()}
    return {
        name: {objective: values[metric] for objective, metric in OBJECTIVES.items()}
        for name, values in found.items()
    }


def _loop(
    sweep: Sweep,
    worker: Worker,
    validate: Callable[[Any], dict[str, float]],
    report: SweepReport,
    progress: Progress,
    until: float,
) -> None:
    failures = 0
    while time.monotonic() < until:
        trial = sweep.claim()
        if trial is None:
            counts = sweep.counts()
            if counts.done >= sweep.n_trials:
                return
            progress.waiting(counts.running)
            time.sleep(min(LONGEST_WAIT, max(0.2, sweep.storage.grace / 4)))
            continue
        state, reason = _run_trial(sweep, worker, trial, validate, progress)
        progress.ended(trial, state, reason)
        report.refresh()
        failures = failures + 1 if state == FAILED else 0
        if failures >= MAX_FAILURES:
            raise SweepError(f"{failures} trials in a row failed, the last one with: {reason}")
    progress.out_of_time()


def _leave(sweep: Sweep, report: SweepReport, status: str, reason: str) -> None:
    """End the parent run, if this is the last worker, and bring it up to date first."""
    try:
        with sweep.storage.locked():
            sweep.parent.left()
            counts, wanted = sweep.counts(), sweep.n_trials
            if counts.running:
                return
            report.refresh(now=True)
            if counts.done >= wanted:
                sweep.parent.end("FINISHED", f"all {wanted} trials")
            else:
                sweep.parent.end(status, f"{reason}, after {counts.done} of {wanted} trials")
    except STORE_OR_STORAGE_FAILURES as error:
        warnings.warn(
            f"the sweep's run {sweep.parent.run_id} could not be ended: {first_line(error)}. "
            "Run the sweep again to end it",
            stacklevel=2,
        )


def _run_trial(
    sweep: Sweep,
    worker: Worker,
    trial: Trial,
    validate: Callable[[Any], dict[str, float]],
    progress: Progress,
) -> tuple[str, str]:
    """Train one trial in a run of its own; returns its state and the reason for it."""
    with sweep.storage.beating(trial):
        try:
            run = _open_run(sweep, worker, trial)
        except BaseException as error:
            sweep.release(trial, first_line(error))
            if isinstance(error, STORE_FAILURES):
                raise TrackingError(f"store {redact(worker.store)}: {first_line(error)}") from error
            raise
        try:
            values = _train(sweep, worker, trial, validate, run, progress)
            _require_held(sweep, trial)
            run.log_results(
                {f"objective.{k}": v for k, v in values.items()}, tags={STATE_TAG: FINISHED}
            )
            run.end("FINISHED")
            sweep.study.tell(trial, list(values.values()))
            return FINISHED, ""
        except (_LostError, UpdateFinishedTrialError):
            run.abandon()
            return LOST, f"silent for more than {sweep.storage.grace} s, another worker has it"
        except TrialPruned as error:
            run.log_results({}, tags={STATE_TAG: PRUNED})
            run.end("KILLED", f"pruned: {error}")
            sweep.study.tell(trial, state=TrialState.PRUNED)
            return PRUNED, str(error)
        except (StorageInternalError, SQLAlchemyError) as error:
            run.end("KILLED", f"storage: {first_line(error)}; the next worker takes it over")
            raise
        except (KeyboardInterrupt, SystemExit) as error:
            with undisturbed():
                reason = error.reason if isinstance(error, Killed) else "Ctrl-C"
                run.log_results({}, tags={STATE_TAG: "interrupted"})
                run.end("KILLED", f"{reason}; a worker that goes on with the sweep takes it over")
                sweep.release(trial, reason)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            run.log_results({}, tags={STATE_TAG: FAILED})
            run.end("FAILED", reason)
            sweep.study.tell(trial, state=TrialState.FAIL)
            return FAILED, reason


def _open_run(sweep: Sweep, worker: Worker, trial: Trial) -> TrialRun:
    """The trial's run: a new one, or the one of an earlier attempt at this trial."""
    frozen = sweep.frozen(trial)
    number, tries = first_number(frozen), 1 + len(history(frozen))
    tags = {STATE_TAG: "running", "sweep.study": sweep.study.study_name,
            "sweep.attempts": str(tries)}  # fmt: skip
    if WARM_START in trial.user_attrs:
        tags["sweep.warm_start"] = trial.user_attrs[WARM_START]
    run_id = trial.user_attrs.get(RUN_ID)
    made = open_trial_run(sweep.parent, number, worker.dataset, run_id, tags, search=tries > 1)
    trial.set_user_attr(RUN_ID, made.info.run_id)
    return TrialRun(made, worker.store, worker.dataset, worker.data, worker.output)


def _train(
    sweep: Sweep,
    worker: Worker,
    trial: Trial,
    validate: Callable[[Any], dict[str, float]],
    run: TrialRun,
    progress: Progress,
) -> dict[str, float]:
    """Train a trial's configuration; returns its objectives at its best epoch."""
    run.log_params({f"search.{k}": v for k, v in trial.params.items()})
    model_config, config = sweep.configs(trial)
    config = replace(config, threads=worker.threads)
    torch.manual_seed(config.seed)
    model = build_model(model_config)
    run.log_params(
        config_params(model=model_config, train=config) | what_ran(model, worker.dataset, config)
    )
    first = first_number(sweep.frozen(trial))

    def on_epoch(result: EpochResult) -> None:
        _require_held(sweep, trial)
        run.on_epoch(result)
        progress.epoch(first, result)
        _report(sweep.settings, trial, result)

    fitted = fit(
        model,
        worker.dataset,
        config,
        validate=validate,
        on_epoch=on_epoch,
        on_step=_Deadline(sweep.settings.trial_seconds).check,
        progress=False,
    )
    run.log_results({"train_time_minutes": fitted.train_minutes}, epoch=None)
    return _objectives(sweep.settings, fitted)


def _report(settings: SweepSettings, trial: Trial, result: EpochResult) -> None:
    """Report an epoch to Optuna, which may prune the trial; it does so by one objective only."""
    values = {k: result.val[OBJECTIVES[k]] for k in settings.objectives}
    if not all(math.isfinite(v) for v in values.values()):
        raise SweepError(f"epoch {result.epoch}: {values} is not finite")
    if len(values) > 1:
        return
    (value,) = values.values()
    trial.report(value, result.epoch)
    behind = trial.should_prune()  # at every epoch, because pruners note how far each trial came
    if behind and not result.is_last and trial.number >= STARTUP_TRIALS:
        raise TrialPruned(f"by {settings.pruner} at epoch {result.epoch}")


def _objectives(settings: SweepSettings, fitted: FitResult) -> dict[str, float]:
    best: Mapping[str, float] = fitted.history[fitted.best_epoch - 1].val
    return {name: best[OBJECTIVES[name]] for name in settings.objectives}


def _require_held(sweep: Sweep, trial: Trial) -> None:
    if not sweep.holds(trial):
        raise _LostError


class _Deadline:
    """The end of a trial's time, which is checked after each step of its training.

    A step, a validation and what `on_epoch` writes are thereby never cut in two.
    """

    def __init__(self, seconds: float) -> None:
        """Begin now; ``seconds`` 0 is no limit."""
        self._seconds = seconds
        self._end = time.monotonic() + seconds if seconds else math.inf

    def check(self) -> None:
        """Raise `_TimeUpError` when the time is over."""
        if time.monotonic() > self._end:
            raise _TimeUpError(f"the time limit of {self._seconds:g} s")
