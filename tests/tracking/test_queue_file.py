"""The offline queue's file: what stands in it at each moment, and what is said of it."""

from __future__ import annotations

import json
import os
import stat
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from ocp_mamba.errors import QueueError
from ocp_mamba.system import files
from ocp_mamba.tracking import offline_queue
from ocp_mamba.tracking.offline_queue import (
    OfflineQueue,
    queue_path,
    read_queue,
    replay_queue,
    said_by,
)

STORE = "http://me:secret1@store"
SHOWN = "http://me:***@store"
HEADER = {"queue_version": 1, "store": SHOWN}


def operation(n: int) -> dict[str, Any]:
    return {"op": "log", "n": n, "text": "é\n"}


def lines(path: Path) -> list[dict[str, Any]]:
    """Every line of the file; each has its end."""
    *whole, rest = path.read_bytes().split(b"\n")
    assert rest == b""
    return [json.loads(line) for line in whole]


def never(error: Exception) -> bool:
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return queue_path(tmp_path / "a" / "b", "0123")


@pytest.fixture
def queue(path: Path) -> OfflineQueue:
    made = OfflineQueue(path, store=STORE)
    for n in (1, 2, 3):
        assert made.append(operation(n)) == n
    return made


def test_the_file_is_named_after_the_run_and_made_with_its_folders(queue: OfflineQueue) -> None:
    assert queue.path.name == "0123.queue.jsonl"
    assert lines(queue.path) == [HEADER, operation(1), operation(2), operation(3)]
    assert len(queue) == 3
    assert os.listdir(queue.path.parent) == ["0123.queue.jsonl"]


def test_an_empty_queue_is_no_file(path: Path) -> None:
    made = OfflineQueue(path, store=STORE)
    assert (len(made), made.first(), made.operations()) == (0, None, [])
    assert made.close() == 0
    made.discard()
    assert not path.exists()


def test_numbers_go_on_and_name_the_first(queue: OfflineQueue) -> None:
    assert queue.first() == (1, operation(1))
    assert queue.first() == (1, operation(1)), "looking takes nothing"
    queue.remove(1)
    assert queue.first() == (2, operation(2))
    assert queue.append(operation(4)) == 4
    with pytest.raises(AssertionError):
        queue.remove(4)
    assert [o["n"] for o in queue.operations()] == [2, 3, 4]


def test_what_is_postponed_comes_last_and_keeps_its_place_in_the_file(queue: OfflineQueue) -> None:
    queue.postpone()
    assert queue.first() == (2, operation(2))
    queue.remove(2)
    assert queue.first() == (3, operation(3))
    queue.remove(3)
    assert queue.first() == (1, operation(1))
    queue.append(operation(4))
    queue.postpone()
    assert queue.first() == (4, operation(4))
    assert [o["n"] for o in queue.operations()] == [1, 4]
    assert queue.close() == 2
    assert lines(queue.path) == [HEADER, operation(1), operation(4)]


def test_closing_leaves_the_file_to_others(queue: OfflineQueue) -> None:
    queue.remove(1)
    assert queue.close() == 2
    assert queue.close() == 2, "again changes nothing"
    other = OfflineQueue(queue.path, store=STORE)
    assert other.append(operation(9)) == 3, "what waits in the file comes first"
    assert [o["n"] for o in other.operations()] == [2, 3, 9]
    assert other.first() == (1, operation(2))


def test_what_is_discarded_is_gone_and_others_may_follow(queue: OfflineQueue) -> None:
    queue.discard()
    assert (len(queue), queue.first(), queue.path.exists()) == (0, None, False)
    queue.append(operation(7))
    assert lines(queue.path) == [HEADER, operation(7)]
    queue.path.unlink()
    queue.discard()
    assert len(queue) == 0


def test_adopting_keeps_a_file_that_is_held(queue: OfflineQueue) -> None:
    before = queue.path.read_bytes()
    other = OfflineQueue(queue.path, store=STORE)
    with pytest.raises(QueueError) as refused:
        other.append(operation(4))
    assert str(refused.value) == (
        f"offline queue {queue.path}: a process that still runs sends it; wait until that has ended"
    )
    assert queue.path.read_bytes() == before
    assert len(other) == 0


def test_a_new_file_that_somebody_else_holds_is_named(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adopts it right after it was made."""

    def held(*words: Any) -> None:
        raise BlockingIOError

    monkeypatch.setattr(offline_queue.fcntl, "flock", held)
    with pytest.raises(QueueError, match=f"^offline queue {path}: a process that still runs"):
        OfflineQueue(path, store=STORE).append(operation(1))


@pytest.mark.parametrize(
    "left", [b"", b"\n", b'\n{"op": "log", "n": 5}', b'\n{"op": "log", "n": 5}\n{"op": "l']
)
def test_a_file_that_was_cut_off_anywhere_is_gone_on_with(path: Path, left: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(json.dumps(HEADER).encode() + left)
    queue = OfflineQueue(path, store=STORE)
    queue.adopt()
    kept = [{"op": "log", "n": 5}] if b"5" in left else []
    assert queue.operations() == kept
    assert queue.append(operation(6)) == len(kept) + 1
    assert lines(path) == [HEADER, *kept, operation(6)]
    assert queue.operations() == [*kept, operation(6)]


class Bits(FileIO):
    """A file that takes three bytes at a time, as a system may, and in all so many."""

    room = 10**9

    def write(self, data: Any) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        n = min(3, self.room)
        self.room -= n
        return super().write(bytes(data)[:n])


def test_a_line_is_written_whole_in_whatever_bits(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before\n")
    with Bits(path, "r+b") as file:
        offline_queue._extend(file, b"0123456789\n")
        assert path.read_bytes() == b"before\n0123456789\n"
        file.room = 7
        with pytest.raises(OSError, match="No space left"):
            offline_queue._extend(file, b"abcdefghijk\n")
    assert path.read_bytes() == b"before\n0123456789\n", "no part of a line is left"


def test_a_line_is_on_the_disk_when_append_returns(
    queue: OfflineQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []

    def sync(handle: int) -> None:
        synced.append((os.fstat(handle).st_ino, os.fstat(handle).st_size))

    monkeypatch.setattr(os, "fsync", sync)
    queue.append(operation(4))
    assert synced == [(queue.path.stat().st_ino, queue.path.stat().st_size)]


def test_an_error_of_the_system_is_told_in_its_words(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.parent.mkdir()
    path.parent.write_text("a file where the folder should be")
    with pytest.raises(QueueError) as failed:
        OfflineQueue(path, store=STORE).append(operation(1))
    assert str(failed.value) == f"offline queue {path}: File exists"
    assert isinstance(failed.value.__cause__, FileExistsError)

    def nameless(*words: Any, **more: Any) -> Any:
        raise OSError("it did not work")

    monkeypatch.setattr(offline_queue, "atomic_write", nameless)
    path.parent.unlink()
    with pytest.raises(QueueError, match=rf"^offline queue {path}: it did not work$"):
        OfflineQueue(path, store=STORE).append(operation(1))
    with pytest.raises(QueueError, match=rf"^offline queue {path}: No such file or directory$"):
        read_queue(path)
    with pytest.raises(QueueError, match=rf"^offline queue {path}: No such file or directory$"):
        replay_queue(path, len, store=STORE, is_refusal=never)


def test_another_store_is_named_without_passwords_and_with_the_way_out(queue: OfflineQueue) -> None:
    queue.close()
    before = queue.path.read_bytes()
    with pytest.raises(QueueError) as refused:
        OfflineQueue(queue.path, store="http://me:secret2@other").adopt()
    assert str(refused.value) == (
        f"offline queue {queue.path}: its operations are for {SHOWN}, this run writes to "
        f"http://me:***@other. Send them first: ocp-mamba runs replay {queue.path}"
    )
    assert queue.path.read_bytes() == before


# --- replaying


def test_a_replay_takes_each_in_order_and_the_file_with_the_last(queue: OfflineQueue) -> None:
    queue.close()
    seen: list[tuple[int, bool]] = []

    def apply(op: dict[str, Any]) -> str:
        seen.append((op["n"], queue.path.exists()))
        return f"done {op['n']}"

    done = replay_queue(queue.path, apply, store=STORE, is_refusal=never)
    assert done == [(operation(n), f"done {n}") for n in (1, 2, 3)]
    assert seen == [(1, True), (2, True), (3, True)]
    assert not queue.path.exists()


def failing(**errors: Exception) -> Any:
    """Applies operations but those whose number has an error here."""

    def apply(op: dict[str, Any]) -> int:
        if error := errors.get(f"n{op['n']}"):
            raise error
        return op["n"]

    return apply


def is_value_error(error: Exception) -> bool:
    return isinstance(error, ValueError)


def test_what_was_refused_stays_with_what_was_not_reached(queue: OfflineQueue) -> None:
    queue.append({"op": "end", "n": 4})
    queue.append({"op": "end", "n": 5})
    queue.close()
    bad, down = ValueError("a\nb"), ConnectionError("gone")
    apply = failing(n2=bad, n4=down)
    with pytest.raises(QueueError) as stopped:
        replay_queue(queue.path, apply, store=STORE, is_refusal=is_value_error)
    assert str(stopped.value) == (
        f"offline queue {queue.path}: 2 of 5 operations sent to {SHOWN}, then log failed: a"
    )
    assert stopped.value.__cause__ is bad
    assert [line.get("n") for line in lines(queue.path)] == [None, 2, 4, 5]
    assert lines(queue.path)[0] == HEADER
    assert stat.S_IMODE(queue.path.stat().st_mode) == 0o600
    with pytest.raises(QueueError, match=r"0 of 3 operations sent .*, then log failed: gone$"):
        replay_queue(queue.path, failing(n2=down), store=STORE, is_refusal=is_value_error)
    assert [line.get("n") for line in lines(queue.path)] == [None, 2, 4, 5]
    assert len(replay_queue(queue.path, failing(), store=STORE, is_refusal=never)) == 3


def test_a_crash_while_a_replay_rewrites_leaves_the_older_file(
    queue: OfflineQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.close()
    before = queue.path.read_bytes()

    def crash(file: Any) -> None:
        assert queue.path.read_bytes() == before, "a reader finds the older file whole till then"
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync", crash)
    with pytest.raises(KeyboardInterrupt):
        replay_queue(queue.path, failing(n2=OSError("x")), store=STORE, is_refusal=never)
    assert queue.path.read_bytes() == before
    assert os.listdir(queue.path.parent) == [queue.path.name]


@pytest.mark.parametrize("others", ["removed it", "wrote another"])
def test_a_file_that_others_have_sent_meanwhile_is_left(
    queue: OfflineQueue, monkeypatch: pytest.MonkeyPatch, others: str
) -> None:
    """Between the opening of the file and its lock."""
    queue.close()
    real = offline_queue._lock

    def lock(file: Any, path: Path) -> None:
        content = path.read_bytes()
        path.rename(path.with_name("old"))  # its number stays in use
        if others == "wrote another":
            path.write_bytes(content)
        real(file, path)

    monkeypatch.setattr(offline_queue, "_lock", lock)
    taken: list[Any] = []
    with pytest.raises(QueueError) as refused:
        replay_queue(queue.path, taken.append, store=STORE, is_refusal=never)
    assert str(refused.value) == (
        f"offline queue {queue.path}: it was sent by another process meanwhile"
    )
    assert taken == []
    assert queue.path.exists() == (others == "wrote another")


def test_two_replays_do_not_meet(queue: OfflineQueue) -> None:
    queue.close()

    def again(op: dict[str, Any]) -> None:
        with pytest.raises(QueueError, match="a process that still runs sends it"):
            replay_queue(queue.path, len, store=STORE, is_refusal=never)

    assert len(replay_queue(queue.path, again, store=STORE, is_refusal=never)) == 3


def test_an_error_that_is_only_a_key_says_its_class() -> None:
    assert said_by(KeyError("colour")) == "KeyError 'colour'"
    assert said_by(IndexError("no such row")) == "IndexError no such row"
    assert said_by(ValueError("one\ntwo")) == "one"


def test_every_line_must_be_an_operation(path: Path) -> None:
    path.parent.mkdir(parents=True)
    head = json.dumps(HEADER)
    for text, message in (
        (f'{head}\n{{"op": "x"}}\n{{"op": 3}}\n', "line 3: key op is missing"),
        (f'{head}\n{{"op": "x"}}\n7\n', "line 3: JSON int found, an object wanted"),
        (f'{head}\n{{"op": "x"}}\nno\n{{"op": "y"', "line 3: not JSON"),
        ("{}\n", "line 1: wanted an object with queue_version 1 and store"),
    ):
        path.write_text(text)
        with pytest.raises(QueueError) as refused:
            read_queue(path)
        assert str(refused.value).startswith(f"offline queue {path}, {message}")
    path.write_text(f'{head}\n{{"op": "x"}}')
    assert read_queue(path) == (SHOWN, [{"op": "x"}]), "whole but for its end"
