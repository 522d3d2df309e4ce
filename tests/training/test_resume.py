"""A training that is interrupted anywhere goes on to the very weights of one that was not."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainings import QUICK, TINY, seeded

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.errors import ConfigError, NotFiniteError, OutputError, ResumeError
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.training import checkpointing
from ocp_mamba.training.loss import Objective
from ocp_mamba.training.run_folder import resume_path
from ocp_mamba.training.trainer import MAX_SKIPPED, fit

DROPPED = replace(TINY, dropout=0.2)
"""Dropout draws from torch's generator, whose state must be kept too."""

MIXED = replace(QUICK, max_epochs=2, infonce_weight=0.2, hard_negatives=2, mixup=1.0)


class Interruption(Exception):
    pass


def interrupt_after(steps: int) -> Any:
    """An ``on_step`` that raises once so many steps are done and the next one has been saved."""
    done = 0

    def on_step() -> None:
        nonlocal done
        done += 1
        if done > steps:
            raise Interruption

    return on_step


@pytest.fixture(scope="module")
def straight(data, validate) -> Any:
    """The uninterrupted training: its result and its weights."""
    model = seeded(DROPPED)
    result = fit(model, data, MIXED, validate=validate, progress=False)
    return result, {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("steps", [1, 4, 5, 9])
def test_a_training_goes_on_within_an_epoch_to_the_very_weights(
    data, validate, straight, tmp_path: Path, steps: int
) -> None:
    path, often = tmp_path / "model.pt", {"save_seconds": 0.0}
    with pytest.raises(Interruption):
        fit(seeded(DROPPED), data, MIXED, validate=validate, output=path, progress=False,
            on_step=interrupt_after(steps), **often)  # fmt: skip
    saved = load_checkpoint(resume_path(path)).loop
    assert saved["step"] == steps
    torch.manual_seed(99)
    resumed = seeded(DROPPED, seed=9)
    told: list[tuple[str, int]] = []
    result = fit(
        resumed, data, MIXED, validate=validate, output=path, resume=True, progress=False,
        on_resume=lambda results: told.extend(("before", r.epoch) for r in results),
        on_epoch=lambda r: told.append(("ended", r.epoch)), **often,
    )  # fmt: skip
    for name, value in straight[1].items():
        assert torch.equal(resumed.state_dict()[name], value), name
    for ours, theirs in zip(result.history, straight[0].history, strict=True):
        assert ours.losses == theirs.losses, "sums of the part before count too"
        assert ours.val == theirs.val
    ended = len(saved["history"])
    again = [("ended", ended)] if ended and saved["progress"] is None else []
    assert told == [
        *(("before", e) for e in range(1, ended + 1)), *again,
        *(("ended", e) for e in range(ended + 1, 3)),
    ]  # fmt: skip


def test_a_training_that_has_ended_has_nothing_left_to_do(data, validate, straight, tmp_path):
    path, told = tmp_path / "model.pt", []
    fit(seeded(DROPPED), data, MIXED, validate=validate, output=path, progress=False)
    assert load_checkpoint(resume_path(path)).loop["optimizer"] is None, "no step follows"
    resumed = seeded(DROPPED, seed=9)
    result = fit(resumed, data, MIXED, validate=validate, output=path, resume=True,
                 on_epoch=told.append, progress=False)  # fmt: skip
    assert [r.epoch for r in told] == [2], "the tracker may not have heard of it"
    assert result.best_epoch == straight[0].best_epoch
    for name, value in straight[1].items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_kill_between_state_and_best_epoch_loses_neither(data, validate, tmp_path):
    """The state of epoch 2, the best one, with the file of epoch 1, or none, beside it."""
    path, kept = tmp_path / "model.pt", tmp_path / "kept.pt"
    scores = iter([0.1, 0.2])
    config = replace(QUICK, max_epochs=2)

    def keep(result: Any) -> None:
        if result.epoch == 1:
            path.rename(kept)

    model = seeded()
    fit(model, data, config, validate=lambda m: {"next_vec_cosine": next(scores)}, output=path,
        on_epoch=keep, progress=False)  # fmt: skip
    best = {k: v.clone() for k, v in model.state_dict().items()}
    for left in (None, kept):
        path.unlink()
        if left is not None:
            left.rename(path)
        resumed = seeded(seed=9)
        fit(resumed, data, config, validate=validate, output=path, resume=True, progress=False)
        assert load_checkpoint(path).loop["epoch"] == 2
        assert all(torch.equal(resumed.state_dict()[k], v) for k, v in best.items())


def test_a_best_epoch_that_is_nowhere_is_refused(data, validate, tmp_path):
    path, scores = tmp_path / "model.pt", iter([0.2, 0.1])
    fit(seeded(), data, replace(QUICK, max_epochs=2), output=path, progress=False,
        validate=lambda m: {"next_vec_cosine": next(scores)})  # fmt: skip
    path.unlink()
    with pytest.raises(ResumeError, match=r"best epoch so far is 1, but .* no such file"):
        fit(seeded(), data, replace(QUICK, max_epochs=2), output=path, resume=True,
            validate=validate, progress=False)  # fmt: skip


def test_batches_begin_anywhere_and_are_the_same(data):
    drawn: dict[str, Any] = {"shuffle_seed": 3, "mixup": 1.0}
    whole = list(batches(data, "train", 8, **drawn))
    for first in (0, 1, len(whole) - 1, len(whole)):
        rest = list(batches(data, "train", 8, first=first, **drawn))
        assert len(rest) == len(whole) - first
        for ours, theirs in zip(rest, whole[first:], strict=True):
            assert torch.equal(ours.vectors, theirs.vectors)
            assert torch.equal(ours.mix.weight, theirs.mix.weight)


# --- numbers that are not finite -------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the losses of chosen steps, by their number from 1, be NaN."""

    def at(*numbers: int) -> None:
        original, step = Objective.forward, iter(range(1, 10_000))

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            losses = original(self, *args, **kwargs)
            if next(step) in numbers:
                losses = {name: loss * math.nan for name, loss in losses.items()}
            return losses

        monkeypatch.setattr(Objective, "forward", forward)

    return at


def test_a_step_that_is_not_finite_is_skipped_counted_and_alarms(data, validate, broken):
    broken(2, 7)
    model = seeded()
    result = fit(model, data, QUICK, validate=validate, progress=False)
    assert [r.skipped_steps for r in result.history][-1] == 2
    assert all(math.isfinite(v) for r in result.history for v in r.losses.values())
    assert all(p.isfinite().all() for p in model.parameters())
    (alarm,) = [a for a in result.alarms if a.name == "skipped_steps"]
    assert (alarm.epoch, alarm.kind) == (1, "alarm")
    assert "steps so far were skipped" in alarm.sentence


def test_many_skipped_steps_in_a_row_end_the_training_with_the_last_good_state(
    data, validate, broken, tmp_path
):
    per_epoch = len(list(batches(data, "train", QUICK.batch_size)))
    broken(*range(per_epoch + 1, per_epoch + 1 + MAX_SKIPPED))
    path = tmp_path / "model.pt"
    with pytest.raises(NotFiniteError, match=f"{MAX_SKIPPED} steps in a row|all .* steps of") as e:
        fit(seeded(), data, QUICK, validate=validate, output=path, progress=False, save_seconds=0)
    assert "start again with a lower --lr" in str(e.value)
    kept = load_checkpoint(resume_path(path))
    assert kept.loop["step"] == per_epoch, "steps that were skipped are no state to keep"
    assert all(v.isfinite().all() for v in kept.state_dict.values())


def test_weights_that_are_not_finite_stop_the_training_before_an_epoch_has_ended(data, validate):
    model = seeded()
    with torch.no_grad():
        model.output.weight.fill_(math.inf)
    with pytest.raises(NotFiniteError, match=r"epoch 1, step .* at learning rate"):
        fit(model, data, QUICK, validate=validate, progress=False)


@pytest.mark.parametrize("lr", [1e25, 1e29])
def test_a_learning_rate_that_blows_up_is_a_clear_error(data, validate, lr):
    """Also where the last step of the epoch does it, so that only validation can see it."""
    for batch_size in (16, 1000):
        config = replace(QUICK, lr=lr, batch_size=batch_size)
        with pytest.raises(NotFiniteError, match="not finite, at learning rate"):
            fit(seeded(), data, config, validate=validate, progress=False)


# --- disks that are full ---------------------------------------------------------------------


def test_a_full_disk_names_the_last_good_state_and_leaves_no_part(
    data, validate, tmp_path, monkeypatch
):
    written, real = [], checkpointing.save_checkpoint

    def full(path: Path, *args: Any, **kwargs: Any) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        real(path, *args, **kwargs)

    monkeypatch.setattr(checkpointing, "save_checkpoint", full)
    path = tmp_path / "model.pt"
    with pytest.raises(
        OutputError, match=r"No space left .* last good state is in .*last\.pt"
    ) as e:
        fit(seeded(), data, QUICK, validate=validate, output=path, progress=False)
    assert "go on with --resume" in str(e.value)
    assert len(load_checkpoint(resume_path(path)).loop["history"]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.last.pt", "model.pt"]


def test_a_limit_of_the_system_is_told_alike(data, validate, tmp_path):
    """The system refuses to let the file grow, as a full disk does, in the middle of a write."""
    import resource

    path = tmp_path / "model.pt"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*model\.last\.pt: .*no state was"):
            fit(seeded(), data, QUICK, validate=validate, output=path, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_settings_must_be_finite() -> None:
    for value in (math.inf, math.nan):
        with pytest.raises(ConfigError, match="lr must be a finite number"):
            TrainConfig(lr=value)
