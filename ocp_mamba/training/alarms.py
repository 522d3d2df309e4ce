"""Alarms in training: faults of a run that the metrics of its epochs show.

The bounds and their reasons are in ``docs/alarms.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ocp_mamba import stats
from ocp_mamba.config import TrainConfig
from ocp_mamba.training.history import EpochRecord

ALARM, NOTICE = "alarm", "notice"

MIN_VARIANCE_RATIO = 0.1
GAP_FALL, GAP_GROWTH = 0.01, 0.05
MIN_SHARE, MAX_SHARE = 0.01, 0.95
COSINE_RISE, P1_FALL = 0.001, 0.005
OVERFIT_LOSS_RATIO = 0.5


@dataclass(frozen=True)
class Alarm:
    """Something that is wrong (``alarm``) or worth knowing (``notice``), from its first epoch on.

    ``str()`` gives the epoch and the sentence, as the run's tag ``<kind>.<name>`` has it.
    """

    name: str
    epoch: int
    sentence: str
    kind: str = ALARM

    @property
    def tag(self) -> str:
        """Name of the run's tag."""
        return f"{self.kind}.{self.name}"

    @property
    def short(self) -> str:
        """Name and epoch, for the progress bar's line."""
        return f"{self.name}@{self.epoch}"

    def __str__(self) -> str:
        """Return ``epoch 3: what is wrong``."""
        return f"epoch {self.epoch}: {self.sentence}"


def find_alarms(history: Sequence[EpochRecord], config: TrainConfig) -> tuple[Alarm, ...]:
    """Return every alarm and notice of a training, each with its first epoch, earliest first.

    A metric that an epoch does not have raises no alarm.
    """
    found = []
    for (kind, name), check in CHECKS.items():
        for n in range(1, len(history) + 1):
            sentence = check(history[:n], config)
            if sentence is not None:
                found.append(Alarm(name, history[n - 1].epoch, sentence, kind))
                break
    return tuple(sorted(found, key=lambda alarm: alarm.epoch))


def listing(alarms: Sequence[Alarm]) -> str:
    """Return one line per alarm, or a line that there are none."""
    if not alarms:
        return "alarms in training: none"
    return "\n".join(f"{a.kind.upper()} {a.name}, {a}" for a in alarms)


def _collapse(history: Sequence[EpochRecord], config: TrainConfig) -> str | None:
    ratio = history[-1].val.get("variance_ratio")
    if ratio is None or ratio >= MIN_VARIANCE_RATIO:
        return None
    return (
        f"the predictions' variance is {ratio:.3f} of the targets' (bound {MIN_VARIANCE_RATIO}): "
        "the model gives nearly the same vector for every context"
    )


def _train_val_gap(history: Sequence[EpochRecord], config: TrainConfig) -> str | None:
    last, best = history[-1], _best(history)
    fall = _cosine(best) - _cosine(last)
    growth = _gap(last) - _gap(best)
    if fall <= GAP_FALL or growth <= GAP_GROWTH:
        return None
    return (
        f"validation cosine fell by {fall:.4f} since epoch {best.epoch} while the gap between "
        f"validation and training loss grew from {_gap(best):.4f} to {_gap(last):.4f}: "
        "the model overfits the train split"
    )


def _loss_balance(history: Sequence[EpochRecord], config: TrainConfig) -> str | None:
    first, now = (_shares(record, config) for record in (history[0], history[-1]))
    cosine_too_small = now["cosine"] < 1 - MAX_SHARE
    if not cosine_too_small and min(first.values()) >= MIN_SHARE:
        return None
    when, shares = ("now", now) if cosine_too_small else ("in epoch 1", first)
    listed = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    return (
        f"shares of the total loss are {listed} {when} "
        f"(wanted: cosine at least {1 - MAX_SHARE:.0%}, "
        f"every term {MIN_SHARE:.0%} in epoch 1): one term has almost no weight"
    )


def _shares(record: EpochRecord, config: TrainConfig) -> dict[str, float]:
    """Each weighted term's share of the total; of a total of 0 the cosine has all."""
    weights = config.loss_weights
    terms = {k: w * record.losses[k] for k, w in weights.items() if k in record.losses}
    total = sum(terms.values())
    return {name: term / total for name, term in terms.items()} if total > 0 else {"cosine": 1.0}


def _retrieval_falls(history: Sequence[EpochRecord], config: TrainConfig) -> str | None:
    window = history[-config.trend_epochs :]
    hits = [r.val["retrieval_p1"] for r in window if "retrieval_p1" in r.val]
    rise = stats.slope([_cosine(r) for r in window])
    fall = stats.slope(hits)
    if len(hits) < config.trend_epochs or rise is None or fall is None:
        return None
    if rise < COSINE_RISE or fall > -P1_FALL:
        return None
    return (
        f"over the last {len(window)} epochs cosine rose by {rise:+.4f} an epoch while P@1 fell "
        f"by {fall:+.4f}: predictions move towards the mean of the likely targets"
    )


def _overfit(history: Sequence[EpochRecord], config: TrainConfig) -> str | None:
    last, best = history[-1], _best(history)
    before, now = best.losses["cosine"], last.losses["cosine"]
    if last.epoch - best.epoch < config.trend_epochs or now > OVERFIT_LOSS_RATIO * before:
        return None
    return (
        f"validation cosine has not risen since epoch {best.epoch} ({_cosine(best):.4f}) while "
        f"the training loss fell from {before:.4f} to {now:.4f}: the model memorizes the train "
        f"split; epoch {best.epoch} is kept"
    )


def _skipped_steps(history: Sequence[EpochRecord], config: TrainConfig) -> str | None:
    skipped = history[-1].skipped_steps
    if not skipped:
        return None
    return (
        f"{skipped} steps so far were skipped, because their loss or gradient was not finite: "
        "a learning rate that is too high, or bf16 where the losses need float32"
    )


Check = Callable[[Sequence[EpochRecord], TrainConfig], str | None]

CHECKS: Mapping[tuple[str, str], Check] = {
    (ALARM, "collapse"): _collapse,
    (ALARM, "train_val_gap"): _train_val_gap,
    (ALARM, "loss_balance"): _loss_balance,
    (ALARM, "retrieval_falls"): _retrieval_falls,
    (ALARM, "skipped_steps"): _skipped_steps,
    (NOTICE, "overfit"): _overfit,
}
"""Each check reads the epochs so far and returns what is wrong now, or None."""


def _best(history: Sequence[EpochRecord]) -> EpochRecord:
    return max(history, key=_cosine)


def _cosine(record: EpochRecord) -> float:
    return record.val["next_vec_cosine"]


def _gap(record: EpochRecord) -> float:
    """Cosine loss on val minus cosine loss on train."""
    return 1 - _cosine(record) - record.losses["cosine"]
