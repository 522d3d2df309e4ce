"""The files of a training, written and read without one: what they hold, and what is refused."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import rewrite
from data_maker import fields_of, make_dataset
from trainings import QUICK, TINY, seeded

from ocp_mamba.baselines.neural import gru_of_size
from ocp_mamba.config import ModelConfig
from ocp_mamba.data.analysis.learnt import learnt_from
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import OutputError, ResumeError, TrainingError
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.training import checkpointing
from ocp_mamba.training.checkpointing import StateFiles
from ocp_mamba.training.distributed import World
from ocp_mamba.training.history import EpochProgress, EpochRecord, is_finite
from ocp_mamba.training.run_folder import resume_path
from ocp_mamba.training.state import FitResult, TrainState
from ocp_mamba.training.trainer import make_optimizer


@pytest.fixture(scope="module")
def small() -> Dataset:
    return make_dataset(n_chains=12, n_concepts=20)


def record(epoch: int, *, best: bool = True, last: bool = False) -> EpochRecord:
    return EpochRecord(
        epoch=epoch, losses={"total": 0.5 / epoch}, lr=0.1, seconds=1.5, examples_per_second=9.0,
        val={"next_vec_cosine": 0.1 * epoch}, improvement_trend=None, is_best=best, is_last=last,
    )  # fmt: skip


def state_of(*history: EpochRecord, seed: int = 0, step: int = 7, **fields: Any) -> TrainState:
    """A training after a step of its optimizer."""
    model = seeded(seed=seed)
    state = TrainState(model, make_optimizer(model, QUICK), "float32", step=step, **fields)
    state.history = list(history)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.25)
    state.optimizer.step()
    return state


def files_of(path: Path | None, dataset: Dataset, model: Any = None, **changed: Any) -> StateFiles:
    return StateFiles(path, model or seeded(seed=5), dataset, replace(QUICK, **changed))


def copied(state: TrainState) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state.model.state_dict().items()}


def equal(ours: Any, theirs: Any) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def test_a_state_within_the_first_epoch_has_no_best_one(path: Path, small: Dataset) -> None:
    progress = EpochProgress(1, 2, 30, {"total": 4.0}, 1, 1, 0.01, 3.5)
    state = state_of(progress=progress)
    files_of(path, small).write(state)
    assert not path.exists()
    saved = files_of(path, small).load()
    assert saved.best_weights is None
    assert (saved.history, saved.step, saved.progress) == ([], 7, progress)
    assert equal(saved.weights, state.model.state_dict())
    resumed = state_of(seed=3, step=0)
    resumed.history.append(record(1))
    torch.manual_seed(123)
    draws = saved.rng["cpu"]
    assert not torch.equal(draws, torch.get_rng_state())
    saved.put_into(resumed)
    assert equal(resumed.model.state_dict(), state.model.state_dict())
    ours, theirs = (s.optimizer.state_dict() for s in (resumed, state))
    assert ours["param_groups"] == theirs["param_groups"]
    for number, moments in theirs["state"].items():
        assert equal(ours["state"][number], moments)
    assert (resumed.history, resumed.step, resumed.progress) == ([], 7, progress)
    assert resumed.history is not saved.history
    assert torch.equal(torch.get_rng_state(), draws)


def test_the_best_epoch_is_written_at_its_end_alone(path: Path, small: Dataset) -> None:
    files = files_of(path, small)
    first, second = state_of(record(1)), state_of(record(1), record(2, best=False), seed=1)
    weights = copied(first)
    files.write(first)
    best = load_checkpoint(path)
    assert best.loop == {"epoch": 1, "val": {"next_vec_cosine": 0.1}}
    assert equal(best.state_dict, weights)
    files.write(second)
    within = state_of(record(1), seed=2, progress=EpochProgress(2, 1))
    for state in (second, within):
        files.write(state)
        assert equal(load_checkpoint(path).state_dict, weights), "it is no better epoch's end"
        saved = files_of(path, small).load()
        assert equal(saved.best_weights, weights)
        assert equal(saved.weights, state.model.state_dict())
        assert saved.history == state.history
        assert saved.optimizer is not None
    third = state_of(record(1), record(2), seed=3)
    files.write(third)
    assert load_checkpoint(path).loop == {"epoch": 2, "val": {"next_vec_cosine": 0.2}}
    assert third.best == record(2)
    assert second.best == record(1)
    assert within.best == record(1)
    assert state_of().best is None


def test_what_is_trained_are_the_weights_that_are_written() -> None:
    state = state_of()
    for trained, kept in zip(
        state.objective.parameters(), state.model.parameters(), strict=True
    ):  # fmt: skip
        assert trained is kept


def test_both_files_say_whose_they_are(path: Path, small: Dataset) -> None:
    files_of(path, small, min_context=1).write(state_of(record(1)))
    wanted = learnt_from(small, 1).to_block()
    for file in (path, resume_path(path)):
        found = load_checkpoint(file)
        assert found.dataset_fingerprint == small.fingerprint
        assert found.encoder == small.meta["encoder"]
        assert found.learnt.keys() == wanted.keys()
        assert found.learnt["min_context"] == 1
        for name in ("transitions", "targets", "examples"):
            assert torch.equal(found.learnt[name]["hashes"], wanted[name]["hashes"])
    loop = load_checkpoint(resume_path(path)).loop
    assert loop["train_config"] == asdict(replace(QUICK, min_context=1))
    assert loop["history"] == [asdict(record(1))]
    assert set(loop) == {"history", "progress", "optimizer", "step", "train_config", "rng"}
    assert set(loop["rng"]) == {"cpu", "cuda"}
    nameless = Dataset(**fields_of(small) | {"meta": {**small.meta}})
    nameless.meta.pop("encoder")
    files_of(path, nameless).write(state_of(record(1)))
    assert load_checkpoint(path).encoder == {}


def test_after_the_last_epoch_no_step_follows(path: Path, small: Dataset) -> None:
    files_of(path, small).write(state_of(record(1), record(2, best=False, last=True)))
    files_of(path, small).write(state_of(record(1, last=True)))
    saved = files_of(path, small).load()
    assert saved.optimizer is None
    resumed = state_of(seed=4)
    moments = resumed.optimizer.state_dict()["state"][0]["exp_avg"].clone()
    saved.put_into(resumed)
    assert torch.equal(resumed.optimizer.state_dict()["state"][0]["exp_avg"], moments)


def test_other_processes_draw_on_their_own(path: Path, small: Dataset) -> None:
    files_of(path, small).write(state_of(record(1)))
    saved = files_of(path, small).load()
    other = state_of(world=World(rank=1))
    torch.manual_seed(40)
    saved.put_into(other)
    drawn = torch.rand(3)
    torch.manual_seed(40 + saved.step)
    assert torch.equal(drawn, torch.rand(3))


def test_a_state_of_an_earlier_version_goes_on_with_the_draws_of_now(
    path: Path, small: Dataset
) -> None:
    files_of(path, small).write(state_of(record(1)))
    state = resume_path(path)
    loop = torch.load(state, weights_only=True)["loop"]
    rewrite(state, loop={k: v for k, v in loop.items() if k not in ("rng", "progress")})
    saved = files_of(path, small).load()
    assert (saved.rng, saved.progress) == ({}, None)
    resumed = state_of()
    torch.manual_seed(11)
    before = torch.get_rng_state()
    saved.put_into(resumed)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_an_output_nothing_is_written_and_nothing_resumed(small: Dataset) -> None:
    files = files_of(None, small)
    assert files.learnt is None
    files.write(state_of(record(1)))
    with pytest.raises(ResumeError, match=r"^cannot resume without an output path$"):
        files.load()
    gru = gru_of_size(TINY, 20_000)
    assert files_of(None, small, gru).learnt is None


def test_a_model_without_a_file_of_its_own_is_refused(path: Path, small: Dataset) -> None:
    gru = gru_of_size(TINY, 20_000)
    with pytest.raises(TrainingError) as refused:
        files_of(path, small, gru)
    kind = type(gru).__name__
    assert str(refused.value) == f"a {kind} has no .pt file; leave the output out"


def refused(path: Path, small: Dataset, model: Any = None, **changed: Any) -> str:
    with pytest.raises(ResumeError) as error:
        files_of(path, small, model, **changed).load()
    return str(error.value)


def test_what_cannot_be_resumed_is_said_in_full(path: Path, small: Dataset) -> None:
    state = resume_path(path)
    assert refused(path, small) == f"cannot resume: checkpoint {state}: there is no such file"
    files_of(path, small).write(state_of(record(1)))
    said = refused(path, small, max_epochs=9, lr=0.5)
    assert said == (
        f"cannot resume {state}: train.lr was 0.003, now 0.5; train.max_epochs was 3, now 9"
    )
    wider = seeded(ModelConfig(d_model=64, n_layers=1, headdim=16))
    assert refused(path, small, wider) == f"cannot resume {state}: model.d_model was 32, now 64"
    other = make_dataset(n_chains=12, n_concepts=20, seed=1)
    assert refused(path, other) == (
        f"cannot resume {state}: dataset was {small.fingerprint[:12]}, now {other.fingerprint[:12]}"
    )
    files_of(path, small, threads=3).load()  # that may change
    loop = torch.load(state, weights_only=True)["loop"]
    way_out = (
        "which this version of ocp_mamba does not have; resume it with the version that wrote it, "
        "or start again without --resume"
    )
    for changed, said in (
        ({"train_config": loop["train_config"] | {"b": 1, "a": 2}},
         f"it has the setting a, b, {way_out}"),
        ({"history": [{**loop["history"][0], "steps": 7}]},
         f"it has the entry of an epoch steps, {way_out}"),
        ({"train_config": loop["train_config"] | {"lr": -1.0}},
         "its settings: lr must be positive"),
    ):  # fmt: skip
        rewrite(state, loop=loop | changed)
        assert refused(path, small).startswith(f"cannot resume {state}: {said}")
    for key in ("history", "optimizer", "step", "train_config"):
        rewrite(state, loop={k: v for k, v in loop.items() if k != key})
        assert refused(path, small) == (
            f"cannot resume {state}: it is no state of a training ({key} is missing)"
        )


def test_the_best_epochs_file_is_made_again_out_of_its_own_state(
    path: Path, small: Dataset
) -> None:
    state = state_of(record(1), record(2))
    weights = copied(state)
    files_of(path, small).write(state)
    for left in (None, 1):
        path.unlink()
        if left is not None:
            files_of(path, small).write(state_of(record(1), seed=8))
            files = files_of(path, small)
            files._save(resume_path(path), state.model, torch.load(
                resume_path(path), weights_only=True)["loop"] | {
                    "history": [asdict(record(1)), asdict(record(2))]})  # fmt: skip
        saved = files_of(path, small).load()
        assert equal(saved.best_weights, weights)
        assert load_checkpoint(path).loop == {"epoch": 2, "val": {"next_vec_cosine": 0.2}}
        assert equal(load_checkpoint(path).state_dict, weights)


def test_a_best_epoch_that_is_nowhere_is_named(path: Path, small: Dataset) -> None:
    state = resume_path(path)
    files_of(path, small).write(state_of(record(1)))
    kept = path.read_bytes()
    files_of(path, small).write(state_of(record(1), record(2), record(3, best=False)))
    way_out = "start again without --resume"
    assert refused(path, small) == (
        f"cannot resume {state}: the best epoch so far is 2, but {path} holds epoch 1; {way_out}"
    )
    path.unlink()
    assert refused(path, small) == (
        f"cannot resume {state}: the best epoch so far is 2, but checkpoint {path}: there is no "
        f"such file; {way_out}"
    )
    path.write_bytes(kept)
    files_of(path, small).write(state_of(record(1), record(2), progress=EpochProgress(3, 1)))
    assert "is 2, but" in refused(path, small), "the state is of a later step"
    assert path.read_bytes() == kept


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("one\ntwo")])
def test_a_file_that_cannot_be_written_is_named_with_what_is_left(
    path: Path, small: Dataset, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*words: Any, **more: Any) -> None:
        raise error

    files, state = files_of(path, small), resume_path(path)
    said = "one" if isinstance(error, RuntimeError) else "[Errno 28] No space left"
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing, "save_checkpoint", fails)
        with pytest.raises(OutputError) as failed:
            files.write(state_of(record(1)))
    assert str(failed.value) == f"cannot write {state}: {said}; no state was written before"
    assert failed.value.__cause__ is error
    files.write(state_of(record(1)))
    monkeypatch.setattr(checkpointing, "save_checkpoint", fails)
    with pytest.raises(OutputError) as failed:
        files.write(state_of(record(1)))
    assert str(failed.value) == (
        f"cannot write {state}: {said}; the last good state is in {state}: free space and go on "
        "with --resume"
    )


# --- the records themselves


def test_progress_counts_what_was_learnt_and_what_was_skipped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    progress = EpochProgress(1, seconds=5.0)
    progress.add({"total": 2.0}, 10)
    progress.add({"total": float("nan")}, 10)
    progress.add({"total": float("inf"), "cosine": 0.0}, 10)
    assert (progress.batches, progress.skipped, progress.skipped_in_a_row) == (3, 2, 2)
    progress.add({"total": 1.0, "cosine": 4.0}, 5)
    assert (progress.batches, progress.examples, progress.skipped_in_a_row) == (4, 15, 0)
    assert progress.sums == {"total": 25.0, "cosine": 20.0}
    assert progress.skipped == 2
    now[0] = 102.5
    assert progress.so_far() == progress.seconds == 7.5
    assert is_finite({})
    result = FitResult([record(1), record(2)], 2, 0.2, False)
    assert result.train_minutes == pytest.approx(0.05)
