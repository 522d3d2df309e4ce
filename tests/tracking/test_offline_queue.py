import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocp_mamba.errors import QueueError
from ocp_mamba.tracking import offline_queue
from ocp_mamba.tracking.offline_queue import OfflineQueue, read_queue, replay_queue

STORE = "http://store"


class Store:
    """Takes operations while it is up; remembers them in order."""

    def __init__(self) -> None:
        self.up = True
        self.taken: list[int] = []

    def __call__(self, operation: dict[str, Any]) -> str:
        if not self.up:
            raise ConnectionError("refused\nsecond line")
        self.taken.append(operation["n"])
        return f"did {operation['n']}"


def operation(n: int) -> dict[str, Any]:
    return {"op": "log", "n": n}


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline_queue, "RETRY_SECONDS", 0)


@given(st.lists(st.booleans(), max_size=12))
def test_order_is_kept_through_any_outages(
    tmp_path_factory: pytest.TempPathFactory, ups: list[bool]
) -> None:
    store = Store()
    path = tmp_path_factory.mktemp("queue") / "s.jsonl"
    queue = OfflineQueue(path, store, store=STORE, failures=(ConnectionError,))
    for n, up in enumerate(ups):
        store.up = up
        queue.send(operation(n))
        waiting = [o["n"] for o in read_queue(path)[1]] if path.exists() else []
        assert store.taken + waiting == list(range(n + 1))
    store.up = True
    assert queue.drain()
    assert store.taken == list(range(len(ups)))
    assert not path.exists()


def test_result_is_passed_on_and_none_while_waiting(tmp_path: Path) -> None:
    store = Store()
    queue = OfflineQueue(tmp_path / "s", store, store=STORE, failures=(ConnectionError,))
    assert queue.send(operation(1)) == "did 1"
    store.up = False
    assert queue.send(operation(2)) is None


def test_other_errors_are_not_swallowed(tmp_path: Path) -> None:
    queue = OfflineQueue(tmp_path / "s", Store(), store=STORE, failures=(ConnectionError,))
    with pytest.raises(KeyError):
        queue.send({"op": "log"})


def test_store_is_left_alone_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline_queue, "RETRY_SECONDS", 1000)
    store = Store()
    queue = OfflineQueue(tmp_path / "s", store, store=STORE, failures=(ConnectionError,))
    store.up = False
    queue.send(operation(1))
    store.up = True
    assert not queue.drain()
    assert queue.drain(now=True)


def test_replay_goes_on_where_it_failed(tmp_path: Path) -> None:
    store, path = Store(), tmp_path / "s.jsonl"
    queue = OfflineQueue(path, store, store=STORE, failures=(ConnectionError,))
    for n in range(4):
        queue.append(operation(n))
    down_at = 2

    def failing(op: dict[str, Any]) -> str:
        store.up = op["n"] < down_at
        return store(op)

    with pytest.raises(QueueError, match=r"2 of 4 operations sent .* log failed: refused"):
        replay_queue(path, failing, store=STORE, failures=(ConnectionError,))
    store.up = True
    assert replay_queue(path, store, store=STORE, failures=(ConnectionError,)) == 2
    assert store.taken == [0, 1, 2, 3]
    assert not path.exists()


HEADER = json.dumps({"queue_version": 1, "store": STORE})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: wanted an object with queue_version 1 and store"),
        ('{"queue_version": 2, "store": "x"}', "line 1: wanted an object with queue_version 1"),
        ('{"spool_version": 2, "store": "x"}', "line 1: wanted an object with queue_version 1"),
        ('{"queue_version": 1}', "line 1: wanted an object with queue_version 1 and store"),
        (HEADER + '\n{"op": "lo', "line 2: not JSON"),
        (HEADER + "\n[1]", "line 2: JSON list found, an object wanted"),
        (HEADER + "\n" + "[" * 100_000, "line 2: not JSON that can be read: it is nested too"),
        (HEADER + '\n{"op": "log", "n": ' + "9" * 5000 + "}", "line 2: not JSON .*5000 digits"),
        (HEADER + '\n{"op": "\\udfff"}', "line 2: .* half a surrogate pair"),
        ('{"queue_version": 1, "store": ["x"]}', "line 1: wanted an object with queue_version 1"),
        (HEADER + '\n{"n": 1}', "line 2: key op is missing"),
    ],
)
def test_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text(text)
    with pytest.raises(QueueError, match=message):
        read_queue(path)


def test_a_spool_file_of_an_earlier_version_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "0123abcd.spool.jsonl"
    lines = [{"spool_version": 1, "store": STORE}, operation(1), operation(2)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_queue(path) == (STORE, [operation(1), operation(2)])
    store = Store()
    assert replay_queue(path, store, store=STORE, failures=(ConnectionError,)) == 2
    assert store.taken == [1, 2]
    assert not path.exists()


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="No such file"):
        read_queue(tmp_path / "absent")
