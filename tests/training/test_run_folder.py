"""The folder of a run: who may work in it, what is gone on with, what is cleaned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ocp_mamba.errors import EndedError, OutputError, ResumeError
from ocp_mamba.system.disk import require_space
from ocp_mamba.training.asked import differences
from ocp_mamba.training.run_folder import (
    RECORD,
    Claim,
    claim,
    clean,
    interrupted,
    resumable,
)

ASKED = {"train": {"lr": 0.1, "threads": 1}, "model": {"relations": ("a", "b")}}
BEGUN = {"dataset": "d" * 64, "store": "sqlite:///x"}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out" / "model.pt"


def begin(output: Path, run_id: str, asked: Any = ASKED) -> Path:
    """A run that was killed: its folder, with a state and a best epoch."""
    with claim(output, asked, resume=False) as mine:
        folder = mine.make(run_id, **BEGUN)
        folder.state.write_text("state")
        folder.best.write_text(f"weights of {run_id}")
    return folder.path


def found(output: Path, asked: Any = ASKED) -> str | None:
    with claim(output, asked, resume=True) as mine:
        return None if mine.folder is None else mine.folder.run_id


def test_the_latest_interrupted_run_with_these_settings_goes_on(output: Path) -> None:
    assert found(output) is None, "nothing is left, so a new one starts"
    begin(output, "first")
    begin(output, "second")
    begin(output, "other", {**ASKED, "train": {"lr": 0.5, "threads": 1}})
    assert found(output) == "second"
    assert found(output.with_name("another.pt")) is None
    assert found(output, {**ASKED, "train": {"lr": 0.1, "threads": 4}}) == "second"
    with claim(output, ASKED, resume=True) as mine:
        mine.made.publish()
        mine.made.finish()
    assert found(output) == "first"
    assert resumable(output, ASKED) == output.parent / "first"


def test_other_settings_are_refused_by_name(output: Path) -> None:
    left = begin(output, "first")
    asked = {"train": {"lr": 0.2, "threads": 1}, "model": {"relations": ["a"]}}
    with pytest.raises(ResumeError) as refused:
        found(output, asked)
    said = str(refused.value)
    assert said.startswith(f"cannot resume {left}: ")
    assert "train.lr was 0.1, now 0.2" in said
    assert "model.relations was ['a', 'b'], now ['a']" in said
    assert "leave --resume out, or remove that folder" in said
    assert resumable(output, asked) is None


def test_a_second_resumption_is_refused_at_once(output: Path) -> None:
    with claim(output, ASKED, resume=True), pytest.raises(ResumeError, match="with --resume; wait"):
        found(output)
    begin(output, "first")
    with claim(output, ASKED, resume=True), pytest.raises(ResumeError, match="with --resume; wait"):
        found(output)
    assert found(output) == "first", "the lock ends with its process"


def test_a_run_that_lives_is_not_resumed_nor_cleaned(output: Path) -> None:
    with claim(output, ASKED, resume=False) as mine:
        folder = mine.make("alive", **BEGUN)
        (folder.path / ".model.pt.0.part").write_text("being written")
        with pytest.raises(ResumeError, match=f"process {os.getpid()} works on it"):
            found(output)
        with claim(output, {"train": {"lr": 9}}, resume=True) as beside:
            assert beside.folder is None, "a run with other settings is none of its business"
        assert clean(output.parent) == []
        assert resumable(output, ASKED) is None
    assert clean(output.parent) == [folder.path / ".model.pt.0.part"]


def test_the_output_is_published_once_and_whole(output: Path) -> None:
    begin(output, "first")
    begin(output, "second")
    with claim(output, ASKED, resume=True) as mine:
        (mine.made.path / "model.gru.pt").write_text("a baseline")
        (mine.made.path / "second.epoch-003.pt").write_text("an epoch")
        output.with_name(".model.pt.dead.part").write_text("left by a kill")
        mine.made.publish()
        assert output.read_text() == "weights of second"
        output.write_text("another run's")
        mine.made.publish()
        assert output.read_text() == "another run's"
    names = {p.name for p in output.parent.iterdir() if p.is_file() and p.suffix != ".lock"}
    assert names == {"model.pt", "model.gru.pt"}


def test_what_a_kill_leaves_is_cleaned(output: Path) -> None:
    ended, waiting, cut = (begin(output, name) for name in ("ended", "waiting", "cut"))
    for path in (ended, waiting, cut):
        (path / f"{path.name}.epoch-003.pt").write_text("an epoch")
        (path / ".x.part").write_text("temporary")
        (path / f".{path.name}.json.1.part").write_text("temporary")
    for path in (ended, waiting):
        record = json.loads((path / RECORD).read_text())
        (path / RECORD).write_text(json.dumps(record | {"ended": True}))
    (waiting / "waiting.queue.jsonl").write_text("needs the epoch's file")
    blank = output.parent / "blank"
    blank.mkdir()
    (blank / "run.lock").touch()
    foreign = output.parent / "foreign"
    foreign.mkdir()
    (foreign / "notes.last.pt").write_text("none of ours")
    clean(output.parent)

    def left(path: Path) -> set[str]:
        return {p.name for p in path.iterdir()} - {"run.json", "run.lock", "model.pt", ".x.part"}

    assert left(ended) == set()
    assert left(waiting) == {"waiting.queue.jsonl", "waiting.epoch-003.pt"}
    assert left(cut) == {"model.last.pt", "cut.epoch-003.pt"}, "it may be gone on with"
    assert not blank.exists()
    assert (foreign / "notes.last.pt").exists()


def test_a_kill_in_the_last_moment_is_gone_on_with(output: Path) -> None:
    """The run is marked as ended, and its state is still there: no new training starts."""
    path = begin(output, "first")
    record = json.loads((path / RECORD).read_text())
    (path / RECORD).write_text(json.dumps(record | {"ended": True, "published": True}))
    assert interrupted(output.parent) == [(path, "model.pt")]
    with claim(output, ASKED, resume=True) as mine:
        assert mine.made.run_id == "first"
        mine.made.finish()
    assert found(output) is None
    assert interrupted(output.parent) == []


def test_what_has_ended_is_not_trained_again_unless_something_changed(output: Path) -> None:
    begin(output, "first")
    with claim(output, ASKED, resume=True) as mine:
        mine.made.publish()
        mine.made.finish()
    with claim(output, ASKED, resume=True) as mine:
        with pytest.raises(EndedError, match=r"has ended: run first, .* leave --resume out"):
            mine.require_not_done(BEGUN["dataset"])
        mine.require_not_done("e" * 64)
    with claim(output, ASKED, resume=False) as mine:
        mine.require_not_done(BEGUN["dataset"])
    with claim(output, {"train": {"lr": 9}}, resume=True) as mine:
        mine.require_not_done(BEGUN["dataset"])
    output.unlink()
    with claim(output, ASKED, resume=True) as mine:
        mine.require_not_done(BEGUN["dataset"])


def test_other_data_is_refused(output: Path) -> None:
    begin(output, "first")
    with (
        claim(output, ASKED, resume=True) as mine,
        pytest.raises(ResumeError, match=r"begun on dataset dddddddddddd, x.npz is eeeeeeeeeeee"),
    ):
        mine.made.require_dataset("e" * 64, Path("x.npz"))


def test_an_output_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    def start(output: Path) -> None:
        with claim(output, ASKED, resume=False):
            pytest.fail("it must not start")

    with pytest.raises(OutputError, match="is a folder; name the"):
        start(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="its folder cannot be written"):
        start(tmp_path / "file" / "model.pt")
    if Path("/proc/version").exists():  # root may write to any folder but a system's own
        with pytest.raises(OutputError, match="its folder cannot be written"):
            start(Path("/proc/nothing/model.pt"))
    with pytest.raises(OutputError, match=r"and .* MB are free; free space"):
        require_space(tmp_path / "model.pt", 10**15)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_differences_are_named_with_both_values() -> None:
    assert differences({"a": 1, "b": {"c": (1, 2)}}, {"a": 1, "b": {"c": [1, 2]}}) == ""
    assert differences({"b": {"c": 1, "threads": 0}}, {"b": {"c": 2, "threads": 2}}) == (
        "b.c was 1, now 2"
    )
    assert differences({"old": 1}, {"new": 2}) == "new was None, now 2; old was 1, now None"


def test_a_claim_without_a_folder_has_nothing_to_release(output: Path) -> None:
    Claim(output, ASKED, None, False).release()
