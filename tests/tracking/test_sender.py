import threading
import time
from pathlib import Path
from typing import Any

import pytest
from outages import wait_until

from ocp_mamba.errors import QueueError
from ocp_mamba.tracking import sender
from ocp_mamba.tracking.offline_queue import OfflineQueue, read_queue
from ocp_mamba.tracking.sender import Sender

STORE = "http://me:hunter22@store"
SHOWN = "http://me:***@store"


class Store:
    """Takes operations while it is up; remembers them in order."""

    def __init__(self) -> None:
        self.up = threading.Event()
        self.up.set()
        self.silent = threading.Event()
        self.silent.set()
        self.refuses: set[int] = set()
        self.tries: list[int] = []
        self.taken: list[int] = []

    def __call__(self, operation: dict[str, Any]) -> str:
        self.tries.append(operation["n"])
        assert self.silent.wait(120)
        if not self.up.is_set():
            raise ConnectionError("refused by http://me:hunter22@store\nsecond line")
        if operation["n"] in self.refuses:
            raise PermissionError(f"{operation['n']} is not yours")
        self.taken.append(operation["n"])
        return f"did {operation['n']}"


def operation(n: int) -> dict[str, Any]:
    return {"op": "log", "n": n}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sender, "FIRST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(sender, "RETRY_SECONDS", 0.02)
    return tmp_path / "run.queue.jsonl"


def started(path: Path, store: Store) -> Sender:
    return Sender(
        OfflineQueue(path, store=STORE),
        store,
        store=STORE,
        is_refusal=lambda error: isinstance(error, PermissionError),
    )


def test_operations_are_sent_in_order_and_answered(path: Path, store: Store) -> None:
    sending = started(path, store)
    answers = [sending.send(operation(n)) for n in range(5)]
    assert sending.wait()
    assert [answer.result(0) for answer in answers] == [f"did {n}" for n in range(5)]
    assert store.taken == list(range(5))
    assert sending.close() == 0
    assert not path.exists()


def test_no_caller_waits_for_a_silent_store(path: Path, store: Store) -> None:
    store.silent.clear()
    sending = started(path, store)
    began = time.monotonic()
    answers = [sending.send(operation(n)) for n in range(20)]
    took = time.monotonic() - began
    wait_until(lambda: store.tries)
    assert not any(answer.done() for answer in answers)
    assert [o["n"] for o in read_queue(path)[1]] == list(range(20))
    assert took < 20, "it takes milliseconds; the store would take for ever"
    assert sending.close() == 20, "the call that hangs is left behind"
    store.silent.set()
    wait_until(lambda: store.taken)
    assert [o["n"] for o in read_queue(path)[1]] == list(range(20)), "it was closed by then"


def test_outages_keep_the_order(path: Path, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    sending = started(path, store)
    for n in range(0, 12, 3):
        store.up.clear()
        sending.send(operation(n))
        sending.send(operation(n + 1))
        wait_until(lambda first=n: store.tries.count(first) >= 3)
        store.up.set()
        sending.send(operation(n + 2))
        assert sending.wait()
        assert store.taken == list(range(n + 3))
    assert sending.close() == 0
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 8, "one line where an outage begins, and one where it ends"
    assert SHOWN in said[0]
    assert f"(log): refused by {SHOWN}" in said[0]
    assert str(path) in said[0]
    assert "second line" not in caplog.text
    assert "hunter22" not in caplog.text


def test_what_is_refused_does_not_hold_up_the_rest(path: Path, store: Store) -> None:
    store.refuses = {1, 3}
    sending = started(path, store)
    for n in range(6):
        sending.send(operation(n))
    assert not sending.wait(), "it does not wait for what is refused"
    assert store.taken == [0, 2, 4, 5]
    store.refuses = {1}
    sending.send(operation(6))
    wait_until(lambda: {3, 6} <= set(store.taken))
    assert sending.close() == 1
    assert [o["n"] for o in read_queue(path)[1]] == [1]


def test_the_wait_at_the_end_is_bounded_and_says_so(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "FAILING_SECONDS", 0.3)
    monkeypatch.setattr(sender, "NOTICE_SECONDS", 0.1)
    store.up.clear()
    sending = started(path, store)
    sending.send(operation(1))
    wait_until(lambda: store.tries)
    said: list[str] = []
    assert not sending.wait(say=said.append)
    assert len(said) == 1
    assert said[0].startswith(f"Waiting for the tracking store {SHOWN} to take 1 operations, for")
    began = time.monotonic()
    assert not sending.wait(say=said.append)
    assert time.monotonic() - began < 0.25, "a second wait does not begin anew"
    assert sending.close() == 1


@pytest.mark.parametrize(("kind", "longer"), [("artifact", True), ("log", False), ("end", False)])
def test_a_silent_store_is_waited_for_longer_where_it_may_be_at_a_large_operation(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, kind: str, longer: bool
) -> None:
    monkeypatch.setattr(sender, "FAILING_SECONDS", 0.0)
    monkeypatch.setattr(sender, "SILENT_SECONDS", 0.5)
    store.silent.clear()
    sending = started(path, store)
    sending.send(operation(1) | {"op": kind})
    began = time.monotonic()
    assert not sending.wait()
    assert (time.monotonic() - began >= 0.45) == longer
    store.silent.set()
    sending.close()


def test_a_store_that_takes_something_is_waited_for_on(
    path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "SILENT_SECONDS", 5.0)
    monkeypatch.setattr(sender, "FAILING_SECONDS", 5.0)

    def slow(op: dict[str, Any]) -> str:
        time.sleep(0.05)
        return store(op)

    sending = started(path, slow)
    for n in range(6):
        sending.send(operation(n))
    assert sending.wait()
    monkeypatch.setattr(sender, "LONGEST_SECONDS", 0.0)
    sending.send(operation(7))
    assert not sending.wait(), "but not longer than the longest time"
    sending.close()


def test_what_a_killed_process_left_is_sent_first(path: Path, store: Store) -> None:
    queue = OfflineQueue(path, store=STORE)
    queue.append(operation(1))
    queue.append(operation(2))
    queue.close()
    sending = started(path, store)
    sending.send(operation(3))
    assert sending.wait()
    assert store.taken == [1, 2, 3]
    sending.close()


def test_a_damaged_file_is_an_error_at_once(path: Path, store: Store) -> None:
    path.write_text("no queue\n")
    with pytest.raises(QueueError, match="line 1: not JSON"):
        started(path, store)


def test_discard_leaves_nothing(path: Path, store: Store) -> None:
    store.up.clear()
    sending = started(path, store)
    sending.send(operation(1))
    sending.discard()
    assert not path.exists()
    store.up.set()
    assert store.taken == []
