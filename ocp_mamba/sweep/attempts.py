"""The attempts at a trial: one whose worker was lost is failed and begun again with its values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

MAX_RETRIES = 10
"""How often a trial whose worker was lost is begun again."""

EARLIER = "earlier_attempts"
"""The user attribute of a trial that holds the numbers of the earlier attempts at it."""


@dataclass(frozen=True)
class Counts:
    """How many trials of a study have which state; all attempts at a trial count as one."""

    finished: int
    pruned: int
    failed: int
    running: int

    @property
    def done(self) -> int:
        """Those that count towards ``n_trials``."""
        return self.finished + self.pruned


def count(trials: Iterable[FrozenTrial]) -> Counts:
    """Count the trials of a study by their state."""
    trials = list(trials)
    retried = {n for t in trials for n in history(t)}

    def of(state: TrialState) -> int:
        return sum(t.state == state and t.number not in retried for t in trials)

    return Counts(
        of(TrialState.COMPLETE), of(TrialState.PRUNED), of(TrialState.FAIL), of(TrialState.RUNNING)
    )


def history(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the earlier attempts at a trial, the first one first."""
    return list(trial.user_attrs.get(EARLIER, []))


def first_number(trial: FrozenTrial) -> int:
    """Return the number that all attempts at a trial share."""
    return [*history(trial), trial.number][0]


def begin_again(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Fail a running trial and queue it with its values; call this under the storage's lock.

    Returns:
        False if the trial is given up, because `MAX_RETRIES` attempts followed the first one.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):
        return True  # its worker was only slow, and has just ended it
    if len(history(trial)) >= MAX_RETRIES:
        return False
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=trial.params,
            distributions=trial.distributions,
            user_attrs={**trial.user_attrs, EARLIER: [*history(trial), trial.number]},
            system_attrs=trial.system_attrs,  # what the pruner and a warm start noted
        )
    )
    return True
