import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.errors import QueueError
from ocp_mamba.system import files
from ocp_mamba.tracking.offline_queue import OfflineQueue, read_queue, replay_queue

STORE = "http://store"
HEADER = json.dumps({"queue_version": 1, "store": STORE})


def operation(n: int) -> dict[str, Any]:
    return {"op": "log", "n": n}


def numbers(path: Path) -> list[int]:
    return [o["n"] for o in read_queue(path)[1]] if path.exists() else []


def never(error: Exception) -> bool:
    return False


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.queue.jsonl"


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["append", "take", "close"]), max_size=14))
def test_file_holds_what_was_appended_and_not_taken(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    path = tmp_path_factory.mktemp("queue") / "q.jsonl"
    queue, waiting, n = OfflineQueue(path, store=STORE), [], 0
    for step in steps:
        if step == "append":
            queue.append(operation(n))
            waiting.append(n)
            n += 1
        elif step == "take" and waiting:
            number, first = queue.first()
            assert first["n"] == waiting.pop(0)
            queue.remove(number)
        elif step == "close":
            assert queue.close() == len(waiting)
            assert numbers(path) == waiting, "the rewritten file holds what waits, and only that"
            queue = OfflineQueue(path, store=STORE)
            if path.exists():
                queue.adopt()
        assert [o["n"] for o in queue.operations()] == waiting
        assert path.exists() == bool(waiting)


def test_only_the_owner_reads_it_and_it_has_no_password(path: Path) -> None:
    queue = OfflineQueue(path, store="postgresql://me:hunter22@host/db?sslpassword=other12")
    queue.append(operation(1))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_queue(path)[0] == "postgresql://me:***@host/db?sslpassword=***"
    queue.append(operation(2))
    queue.remove(queue.first()[0])
    queue.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "hunter22" not in path.read_text()


APPENDING = """
import sys
from pathlib import Path
from ocp_mamba.tracking.offline_queue import OfflineQueue
queue = OfflineQueue(Path(sys.argv[1]), store="http://store")
for n in range(100_000):
    queue.append({"op": "log", "n": n, "text": "x" * 3000})
    print(n, flush=True)
"""


def test_kill_loses_nothing_that_was_taken(path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", APPENDING, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    said = [int(process.stdout.readline()) for _ in range(15)]
    process.send_signal(signal.SIGKILL)
    said += [int(line) for line in process.stdout]
    process.wait()
    process.stdout.close()
    found = numbers(path)
    assert found[: len(said)] == said
    assert found == list(range(len(found)))
    queue = OfflineQueue(path, store=STORE)
    queue.adopt()
    queue.append(operation(-1))
    assert [o["n"] for o in queue.operations()] == [*found, -1]
    queue.close()


@pytest.mark.parametrize("cut", [1, 5, -1])
def test_last_line_that_was_cut_off_is_left_out(path: Path, cut: int) -> None:
    line = json.dumps(operation(2))
    path.write_text(f"{HEADER}\n{json.dumps(operation(1))}\n{line[:cut]}")
    assert numbers(path) == [1]
    queue = OfflineQueue(path, store=STORE)
    queue.adopt()
    queue.append(operation(3))
    assert numbers(path) == [1, 3]


def test_last_line_that_is_whole_but_for_its_end_counts(path: Path) -> None:
    path.write_text(f"{HEADER}\n{json.dumps(operation(1))}")
    assert numbers(path) == [1]
    queue = OfflineQueue(path, store=STORE)
    queue.adopt()
    queue.append(operation(2))
    assert numbers(path) == [1, 2]


def test_a_full_disk_is_an_error_and_keeps_the_lines_before(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = OfflineQueue(path, store=STORE)
    queue.append(operation(1))

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(QueueError, match="No space left on device"):
            queue.append(operation(2))
    queue.append(operation(3))
    assert numbers(path) == [1, 3]
    assert [o["n"] for o in queue.operations()] == [1, 3]


def test_a_crash_while_it_is_rewritten_leaves_the_older_file(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = OfflineQueue(path, store=STORE)
    for n in range(3):
        queue.append(operation(n))
    queue.remove(queue.first()[0])
    before = path.read_bytes()

    def crash(file: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "sync", crash)
    with pytest.raises(KeyboardInterrupt):
        queue.close()
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_signal_after_the_write_does_not_hide_the_line(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = OfflineQueue(path, store=STORE)
    queue.append(operation(1))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda handle: sys.exit(143))
        with pytest.raises(SystemExit):
            queue.append(operation(2))
    queue.append(operation(3))
    assert [o["n"] for o in queue.operations()] == [1, 2, 3]
    for n in (1, 2, 3):
        number, first = queue.first()
        assert first["n"] == n
        queue.remove(number)
    assert not path.exists()


def test_file_of_a_running_process_is_left_alone(path: Path) -> None:
    queue = OfflineQueue(path, store=STORE)
    queue.append(operation(1))
    with pytest.raises(QueueError, match="a process that still runs sends it"):
        replay_queue(path, len, store=STORE, is_refusal=never)
    with pytest.raises(QueueError, match="a process that still runs sends it"):
        OfflineQueue(path, store=STORE).adopt()
    queue.close()
    assert len(replay_queue(path, len, store=STORE, is_refusal=never)) == 1


def test_file_for_another_store_is_not_gone_on_with(path: Path) -> None:
    path.write_text(f"{HEADER}\n{json.dumps(operation(1))}\n")
    with pytest.raises(QueueError, match="are for http://store, this run writes to http://other"):
        OfflineQueue(path, store="http://other").append(operation(2))
    assert numbers(path) == [1]


def test_replay_goes_on_where_it_failed(path: Path) -> None:
    path.write_text("\n".join([HEADER, *(json.dumps(operation(n)) for n in range(4))]) + "\n")
    taken: list[int] = []

    def down_at_2(op: dict[str, Any]) -> int:
        if op["n"] == 2 and len(taken) == 2:
            raise ConnectionError("refused\nsecond line")
        taken.append(op["n"])
        return op["n"]

    with pytest.raises(QueueError, match=r"2 of 4 operations sent .* log failed: refused$"):
        replay_queue(path, down_at_2, store=STORE, is_refusal=never)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    taken.append(-1)
    assert replay_queue(path, down_at_2, store=STORE, is_refusal=never) == [
        (operation(2), 2),
        (operation(3), 3),
    ]
    assert taken == [0, 1, -1, 2, 3]
    assert not path.exists()


def test_replay_of_what_is_refused_does_not_hold_up_the_rest(path: Path) -> None:
    path.write_text("\n".join([HEADER, *(json.dumps(operation(n)) for n in range(4))]) + "\n")
    taken = []

    def refuses_1(op: dict[str, Any]) -> None:
        if op["n"] == 1:
            raise KeyError("colour")
        taken.append(op["n"])

    with pytest.raises(QueueError, match=r"3 of 4 .* log failed: KeyError 'colour'"):
        replay_queue(path, refuses_1, store=STORE, is_refusal=lambda e: isinstance(e, KeyError))
    assert taken == [0, 2, 3]
    assert numbers(path) == [1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: wanted an object with queue_version 1 and store"),
        ('{"queue_version": 2, "store": "x"}', "line 1: wanted an object with queue_version 1"),
        ('{"spool_version": 2, "store": "x"}', "line 1: wanted an object with queue_version 1"),
        ('{"queue_version": 1}', "line 1: wanted an object with queue_version 1 and store"),
        (HEADER + '\n{"op": "lo\n', "line 2: not JSON"),
        (HEADER + "\n\n", "line 2: not JSON"),
        (HEADER + "\n[1]\n", "line 2: JSON list found, an object wanted"),
        (HEADER + "\n" + "[" * 100_000 + "\n", "line 2: not JSON that can be read: it is nested"),
        (HEADER + '\n{"op": "log", "n": ' + "9" * 5000 + "}\n", "line 2: not JSON .*5000 digits"),
        (HEADER + '\n{"op": "\\udfff"}\n', "line 2: .* half a surrogate pair"),
        (HEADER + "\n\udcff\n", "line 2: not UTF-8"),
        ('{"queue_version": 1, "store": ["x"]}', "line 1: wanted an object with queue_version 1"),
        (HEADER + '\n{"n": 1}', "line 2: key op is missing"),
    ],
)
def test_bad_file_is_refused_with_its_line(path: Path, text: str, message: str) -> None:
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(QueueError, match=message):
        read_queue(path)


def test_a_spool_file_of_an_earlier_version_is_replayed(tmp_path: Path) -> None:
    path = tmp_path / "0123abcd.spool.jsonl"
    lines = [{"spool_version": 1, "store": STORE}, operation(1), operation(2)]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    assert read_queue(path) == (STORE, [operation(1), operation(2)])
    sent = replay_queue(path, lambda op: op["n"], store=STORE, is_refusal=never)
    assert [result for _, result in sent] == [1, 2]
    assert not path.exists()


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QueueError, match="No such file"):
        read_queue(tmp_path / "absent")
    with pytest.raises(QueueError, match="No such file"):
        replay_queue(tmp_path / "absent", len, store=STORE, is_refusal=never)
