"""A sweep: an Optuna study that any number of workers share, and its one parent run in MLflow.

A worker begins a trial while it holds the storage's lock. It first queues the trials of dead
workers again, then counts the finished, pruned and running trials, and begins one only if one is
missing. So any number of workers together run exactly ``n_trials``, and none of them twice.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.pruners import (
    BasePruner,
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    SuccessiveHalvingPruner,
)
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import SweepError
from ocp_mamba.sweep.attempts import MAX_RETRIES, Counts, begin_again, count
from ocp_mamba.sweep.defaults import DEFAULT_TRIALS, WARM_TRIALS
from ocp_mamba.sweep.runs import ParentRun, end_trial_run, leave_project_run, make_parent
from ocp_mamba.sweep.space import Space, parse_space
from ocp_mamba.sweep.storage import SweepStorage

ID, SETTINGS, N_TRIALS, PARENT = "id", "settings", "n_trials", "parent_run_id"
RUN_ID, WARM_START, REASON = "run_id", "warm_start", "reason"
BASELINES = "baselines"


@dataclass(frozen=True)
class SweepSettings:
    """What all workers of a sweep share; stored with the study. ``trial_seconds`` 0 is no limit."""

    data: str
    fingerprint: str
    objectives: tuple[str, ...]
    space_name: str
    space: str
    model: ModelConfig
    train: TrainConfig
    pruner: str
    trial_seconds: float
    experiment: str

    @staticmethod
    def of(stored: Mapping[str, Any]) -> SweepSettings:
        """Read what `asdict` wrote."""
        read = {
            "objectives": tuple(stored["objectives"]),
            "model": ModelConfig(**stored["model"]),
            "train": TrainConfig(**stored["train"]),
        }
        return SweepSettings(**{**stored, **read})


@dataclass(frozen=True)
class Sweep:
    """A study, its storage and its parent run, as one worker holds them."""

    study: optuna.Study
    storage: SweepStorage
    settings: SweepSettings
    space: Space
    parent: ParentRun

    @property
    def n_trials(self) -> int:
        """How many trials are wanted now; another worker may have raised it."""
        return int(self.study.user_attrs[N_TRIALS])

    def trials(self) -> list[FrozenTrial]:
        """Return all trials, in the order of their numbers."""
        return self.study.get_trials(deepcopy=False)

    def counts(self) -> Counts:
        """Count the trials by their state."""
        return count(self.trials())

    def claim(self) -> Trial | None:
        """Begin a trial, or return None where none is missing or the missing ones are running."""
        with self.storage.locked():
            for dead in self.storage.silent(self.trials()):
                self._take_over(dead)
            trials = self.trials()
            counts = count(trials)
            if counts.done + counts.running >= self.n_trials:
                return None
            self.parent.running()
            self.study.sampler = _sampler(self.settings.train.seed + len(trials))
            trial = self.study.ask(fixed_distributions=dict(self.space.distributions))
            self.storage.beat(trial)
        return trial

    def release(self, trial: Trial, reason: str) -> None:
        """Give a trial back that this worker will not finish, for another one to take over."""
        with self.storage.locked():
            trial.set_user_attr(REASON, reason)
            self._take_over(self.frozen(trial))

    def frozen(self, trial: Trial) -> FrozenTrial:
        """Return a trial as the storage has it."""
        return next(t for t in self.trials() if t.number == trial.number)

    def holds(self, trial: Trial) -> bool:
        """Whether a trial is still this worker's, which it is not after too long a silence."""
        return self.frozen(trial).state == TrialState.RUNNING

    def _take_over(self, trial: FrozenTrial) -> None:
        """Queue a trial again, or end its run if too many workers were lost on it."""
        if not begin_again(self.study, trial) and RUN_ID in trial.user_attrs:
            reason = f"{MAX_RETRIES + 1} workers were lost on this trial"
            end_trial_run(trial.user_attrs[RUN_ID], "FAILED", reason)

    def baselines(self) -> dict[str, dict[str, float]]:
        """Return each baseline's values by objective, as `note_baselines` stored them."""
        found: dict[str, dict[str, float]] = self.study.user_attrs.get(BASELINES, {})
        return found

    def note_baselines(self, measure: Callable[[], dict[str, dict[str, float]]]) -> None:
        """Store what the baselines reach on the split of the trials, once for the study."""
        if not self.baselines():
            self.study.set_user_attr(BASELINES, measure())

    def ahead_of(self, trial: FrozenTrial) -> dict[str, list[str]]:
        """Return, for each objective, the baselines that a finished trial does not exceed."""
        return {
            objective: [
                name for name, found in self.baselines().items() if found[objective] >= value
            ]
            for objective, value in zip(self.settings.objectives, trial.values, strict=True)
        }

    def best(self) -> FrozenTrial | None:
        """Return the finished trial that is best in the first objective, or None."""
        finished = [t for t in self.trials() if t.state == TrialState.COMPLETE]
        return max(finished, key=lambda t: t.values[0], default=None)

    def configs(self, trial: FrozenTrial | Trial) -> tuple[ModelConfig, TrainConfig]:
        """Return the configs of a trial."""
        return self.space.configs(trial.params, self.settings.model, self.settings.train)


def start(
    name: str,
    storage: SweepStorage,
    settings: SweepSettings,
    dataset: Dataset,
    *,
    n_trials: int | None,
    warm_start: Sequence[str],
    store: str,
    log: Callable[[str], None],
) -> Sweep:
    """Make a study with its parent run, or continue the study of this name.

    Raises:
        SweepError: the study of this name is another sweep, or a warm start is not possible.
    """
    with storage.locked():
        if name in optuna.get_all_study_names(storage.optuna):
            study = optuna.load_study(study_name=name, storage=storage.optuna)
            _require_same(study, settings)
            if warm_start:
                log(f"study {name} exists already: its warm start is not changed")
        else:
            found = {old: _earlier(old, storage, settings) for old in warm_start}
            study = optuna.create_study(
                study_name=name,
                storage=storage.optuna,
                directions=["maximize"] * len(settings.objectives),
            )
            study.set_user_attr(ID, uuid.uuid4().hex)
            study.set_user_attr(SETTINGS, asdict(settings))
            for old, trials in found.items():
                _enqueue(study, old, trials, settings, log)
        if n_trials is not None or N_TRIALS not in study.user_attrs:
            study.set_user_attr(N_TRIALS, n_trials or DEFAULT_TRIALS)
        if PARENT not in study.user_attrs:
            sweep_id = study.user_attrs[ID]
            parent = make_parent(sweep_id, settings.experiment, f"sweep {name}", dataset, store)
            study.set_user_attr(PARENT, parent)
    return _opened(study, storage, store)


def join(name: str, storage: SweepStorage, *, n_trials: int | None, store: str) -> Sweep:
    """Take part in a study that another worker made, with its settings.

    Raises:
        SweepError: there is no such study.
    """
    with storage.locked():
        _require_known(name, storage)
        study = optuna.load_study(study_name=name, storage=storage.optuna)
        _require_ours(study)
        if n_trials is not None:
            study.set_user_attr(N_TRIALS, n_trials)
    return _opened(study, storage, store)


def study_data(name: str, storage: SweepStorage) -> Path:
    """Return the dataset file that a study was started with.

    Raises:
        SweepError: there is no such study, or no such file here.
    """
    _require_known(name, storage)
    study = optuna.load_study(study_name=name, storage=storage.optuna)
    _require_ours(study)
    path = Path(study.user_attrs[SETTINGS]["data"])
    if not path.is_file():
        raise SweepError(f"the study's dataset {path} is not on this machine; give it with --data")
    return path


def _require_known(name: str, storage: SweepStorage) -> None:
    names = optuna.get_all_study_names(storage.optuna)
    if name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise SweepError(f"storage {storage.shown} has no study {name!r}; it has: {known}")


def _opened(study: optuna.Study, storage: SweepStorage, store: str) -> Sweep:
    _require_ours(study)
    settings = SweepSettings.of(study.user_attrs[SETTINGS])
    study.pruner = pruner_of(settings.pruner, settings.train)
    leave_project_run(study.user_attrs[PARENT])
    parent = ParentRun(study.user_attrs[PARENT], study.user_attrs[ID], store)
    return Sweep(study, storage, settings, parse_space(settings.space, settings.space_name), parent)


def _require_ours(study: optuna.Study) -> None:
    if not {ID, SETTINGS} <= set(study.user_attrs):
        raise SweepError(
            f"study {study.study_name!r} was not made by `ocp-mamba sweep`, or the command ended "
            "before it was complete; choose another --study"
        )


def _require_same(study: optuna.Study, settings: SweepSettings) -> None:
    """Refuse to continue a study with other settings: its trials could not be compared."""
    _require_ours(study)
    then = SweepSettings.of(study.user_attrs[SETTINGS])
    differ = []
    for field in fields(SweepSettings):
        if field.name in ("data", "space_name", "space", "experiment"):
            continue
        old, new = getattr(then, field.name), getattr(settings, field.name)
        if isinstance(old, ModelConfig | TrainConfig):
            was, now = asdict(old), asdict(new)
            differ += [f"{field.name}.{k}: {was[k]!r}, now {now[k]!r}"
                       for k in was if was[k] != now[k]]  # fmt: skip
        elif old != new:
            differ.append(f"{field.name}: {old!r}, now {new!r}")
    old_space = parse_space(then.space, then.space_name).distributions
    new_space = parse_space(settings.space, settings.space_name).distributions
    differ += [f"space {k}: {old_space.get(k, 'not searched')}, now "
               f"{new_space.get(k, 'not searched')}"
               for k in sorted({*old_space, *new_space})
               if old_space.get(k) != new_space.get(k)]  # fmt: skip
    if differ:
        name = study.study_name
        raise SweepError(
            f"study {name} exists with other settings:\n  " + "\n  ".join(differ) + "\n"
            f"To continue it: --join {name}. For a new study that tries its best trials first: "
            f"--study NEW --warm-start {name}"
        )


def _earlier(name: str, storage: SweepStorage, settings: SweepSettings) -> list[FrozenTrial]:
    """The best finished trials of an earlier study."""
    _require_known(name, storage)
    study = optuna.load_study(study_name=name, storage=storage.optuna)
    finished = [t for t in study.get_trials() if t.state == TrialState.COMPLETE]
    if not finished:
        raise SweepError(f"--warm-start {name}: the study has no finished trial")
    sign = -1 if study.directions[0] == optuna.study.StudyDirection.MAXIMIZE else 1
    return sorted(finished, key=lambda t: sign * t.values[0])[:WARM_TRIALS]


def _enqueue(
    study: optuna.Study,
    old: str,
    trials: Sequence[FrozenTrial],
    settings: SweepSettings,
    log: Callable[[str], None],
) -> None:
    """Queue earlier configurations as a study's first trials; each is trained anew."""
    space = parse_space(settings.space, settings.space_name)
    queued = 0
    for trial in trials:
        params = {k: v for k, v in trial.params.items() if space.allows(k, v)}
        if params:
            note = {WARM_START: f"{old}, trial {trial.number}"}
            study.enqueue_trial(params, user_attrs=note, skip_if_exists=True)
            queued += 1
    log(f"warm start: {queued} of the best configurations of {old} are tried first")


def _sampler(seed: int) -> TPESampler:
    """A new sampler for each trial, so that no two workers or restarts draw the same values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(multivariate=True, constant_liar=True, seed=seed)


def pruner_of(name: str, train: TrainConfig) -> BasePruner:
    """Return one of `PRUNERS` for trials of ``train.max_epochs``; a resource is an epoch."""
    if name == "asha":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)
    if name == "hyperband":
        return HyperbandPruner(min_resource=1, max_resource=train.max_epochs, reduction_factor=3)
    if name == "median":
        return MedianPruner(n_startup_trials=5, n_warmup_steps=1)
    return NopPruner()
