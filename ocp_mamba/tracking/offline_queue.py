"""The offline queue: a file of tracking operations that the store has not taken yet.

Operations are JSON objects, each harmless to apply twice. They wait in a JSONL file, in order. The
file's first line names the store that it is for, without a password. The file exists only while
something waits, and only its owner can read it. `replay_queue` applies what a file holds.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import IO, Any

from ocp_mamba.errors import QueueError, first_line
from ocp_mamba.redact import redact
from ocp_mamba.system.files import atomic_write
from ocp_mamba.system.parsing import json_line

Operation = dict[str, Any]
Apply = Callable[[Operation], Any]
IsRefusal = Callable[[Exception], bool]
"""Whether an error means that the store will never take this one operation."""

QUEUE_VERSION = 1
VERSION_KEY, OLD_VERSION_KEY = "queue_version", "spool_version"
"""The key of the version in a file's first line, and the one that ``.spool.jsonl`` files have."""

OWNER_ONLY = 0o600


def queue_path(folder: Path, run_id: str) -> Path:
    """Return the file of a run's offline queue."""
    return folder / f"{run_id}.queue.jsonl"


class OfflineQueue:
    """Operations that wait in a file; one process at a time may hold it.

    It is not safe for threads: the one that holds it (`sender.Sender`) has a lock.
    """

    def __init__(self, path: Path, *, store: str) -> None:
        """Name the file; it is made when the first operation is appended.

        Args:
            path: the file.
            store: the address of the store that the operations are for; its password is not kept.
        """
        self.path = path
        self._store = redact(store)
        self._file: FileIO | None = None
        self._waiting: deque[tuple[int, int, int]] = deque()  # number, offset, length of each line
        self._noted, self._end = 0, 0  # how many lines were noted, and where the last one ends

    def __len__(self) -> int:
        """Return how many operations wait."""
        return len(self._waiting)

    def append(self, operation: Operation) -> int:
        """Let an operation wait; it is on the disk when this returns. Returns its number.

        Raises:
            QueueError: the file cannot be written, or another process holds it.
        """
        line = json.dumps(operation).encode() + b"\n"
        try:
            if self._file is None and self.path.exists():
                self.adopt()
            if self._file is None:
                self._create(line)
            else:
                _extend(self._file, line)
        except OSError as error:
            raise QueueError(f"offline queue {self.path}: {error.strerror or error}") from error
        self._note_lines()
        return self._noted

    def adopt(self) -> None:
        """Go on with the file of a process that was killed: what waits in it comes first.

        Raises:
            QueueError: the file cannot be read, is for another store, or another process holds it.
        """
        store, operations = read_queue(self.path)
        if redact(store) != self._store:
            raise QueueError(
                f"offline queue {self.path}: its operations are for {redact(store)}, this run "
                f"writes to {self._store}. Send them first: ocp-mamba runs replay {self.path}"
            )
        file = FileIO(self.path, "r+b")
        try:
            _lock(file, self.path)
            self._end = _end_last_line(file, n_lines=1 + len(operations))
        except BaseException:
            file.close()
            raise
        self._file = file
        self._note_lines()

    def first(self) -> tuple[int, Operation] | None:
        """Return the number of the operation that is next, and the operation; None if none is."""
        if not self._waiting:
            return None
        number, offset, length = self._waiting[0]
        return number, self._read(offset, length)

    def remove(self, number: int) -> None:
        """Forget the operation that is next, which the store has taken."""
        assert self._waiting[0][0] == number
        self._waiting.popleft()
        self._note_lines()
        if not self._waiting:
            self.discard()

    def postpone(self) -> None:
        """Let the operation that is next wait behind all others."""
        self._waiting.rotate(-1)

    def operations(self) -> list[Operation]:
        """Return what waits, in the order in which it was appended."""
        return [self._read(offset, length) for _, offset, length in sorted(self._waiting)]

    def close(self) -> int:
        """Leave the file to `replay_queue`, without what was taken; returns how many wait."""
        left = len(self._waiting)
        if self._file is not None:
            _rewrite(self.path, self._store, self.operations())
            self._file.close()
            self._file = None
        return left

    def discard(self) -> None:
        """Delete what waits."""
        self._waiting.clear()
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _create(self, line: bytes) -> None:
        header = _header(self._store)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path, mode=OWNER_ONLY) as file:
            file.write(header + line)
        file = FileIO(self.path, "r+b")
        _lock(file, self.path)
        self._end = len(header)
        self._file = file

    def _note_lines(self) -> None:
        """Note the lines behind the last one that was noted.

        A signal may end `append` after it has written a line, so lines are counted in the file.
        """
        if self._file is None:
            return
        size = os.fstat(self._file.fileno()).st_size
        for line in os.pread(self._file.fileno(), size - self._end, self._end).splitlines(True):
            self._noted += 1
            self._waiting.append((self._noted, self._end, len(line)))
            self._end += len(line)

    def _read(self, offset: int, length: int) -> Operation:
        assert self._file is not None
        operation: Operation = json.loads(os.pread(self._file.fileno(), length, offset))
        return operation


def read_queue(path: Path) -> tuple[str, list[Operation]]:
    """Return the store's URI and the waiting operations of an offline queue's file.

    A last line without an end that is no JSON object was cut off while it was written. Nothing
    counted on it, and it is left out. Files of earlier versions of this package, named
    ``.spool.jsonl``, are read too.

    Raises:
        QueueError: the file is missing, or a line is not what an offline queue holds.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise QueueError(f"offline queue {path}: {error.strerror or error}") from error
    cut_off = lines.pop()  # b"" where the last line has its end
    parsed = [_parse(line, path, n) for n, line in enumerate(lines, 1)]
    if cut_off:
        with suppress(QueueError):
            parsed.append(_parse(cut_off, path, len(lines) + 1))
    header = parsed[0] if parsed else {}
    version = header.get(VERSION_KEY, header.get(OLD_VERSION_KEY))
    if version != QUEUE_VERSION or not isinstance(header.get("store"), str):
        raise QueueError(
            f"offline queue {path}, line 1: wanted an object with {VERSION_KEY} {QUEUE_VERSION} "
            "and store"
        )
    for number, operation in enumerate(parsed[1:], 2):
        if not isinstance(operation.get("op"), str):
            raise QueueError(f"offline queue {path}, line {number}: key op is missing")
    return header["store"], parsed[1:]


def replay_queue(
    path: Path, apply: Apply, *, store: str, is_refusal: IsRefusal
) -> list[tuple[Operation, Any]]:
    """Apply the operations of a file in order and delete it; returns each with its result.

    An operation that the store refuses for good does not hold up those behind it.

    Raises:
        QueueError: the file cannot be read, a process that still runs holds it, or an operation
            fails; the file then holds what was not applied.
    """
    done: list[tuple[Operation, Any]] = []
    with _held(path):
        written_for, operations = read_queue(path)
        refused: list[Operation] = []
        failure: Exception | None = None
        for number, operation in enumerate(operations):
            try:
                done.append((operation, apply(operation)))
            except Exception as error:
                failure = failure or error
                refused.append(operation)
                if not is_refusal(error):
                    refused += operations[number + 1 :]
                    break
        if failure is not None:
            _rewrite(path, written_for, refused)
            raise QueueError(
                f"offline queue {path}: {len(done)} of {len(operations)} operations sent to "
                f"{redact(store)}, then {refused[0]['op']} failed: {said_by(failure)}"
            ) from failure
        path.unlink()
    return done


def said_by(error: Exception) -> str:
    """Return what failed in one line, with the error's class where its message needs that."""
    line = first_line(error)
    return f"{type(error).__name__} {line}" if isinstance(error, LookupError) else line


def _parse(line: bytes, path: Path, number: int) -> Operation:
    return json_line(line, QueueError, f"offline queue {path}, line {number}")


def _header(store: str) -> bytes:
    return json.dumps({VERSION_KEY: QUEUE_VERSION, "store": store}).encode() + b"\n"


def _rewrite(path: Path, store: str, operations: list[Operation]) -> None:
    """Let a file hold these operations; a crash leaves the older file whole, or the new one."""
    with atomic_write(path, mode=OWNER_ONLY) as file:
        file.write(_header(store))
        file.writelines(json.dumps(operation).encode() + b"\n" for operation in operations)


def _extend(file: FileIO, line: bytes) -> None:
    """Write a line at a file's end, onto the disk; a file that cannot take it whole keeps none."""
    size = file.seek(0, os.SEEK_END)
    try:
        written = 0
        while written < len(line):
            written += file.write(line[written:])
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            os.ftruncate(file.fileno(), size)
        raise


def _end_last_line(file: FileIO, n_lines: int) -> int:
    """Let a file end with a whole line; returns where its first line ends.

    A last line that was cut off is removed, so that the next one begins on a line of its own.
    """
    content = file.readall()
    if content.count(b"\n") < n_lines:
        _extend(file, b"\n")  # the last line is whole but for its end
    else:
        os.ftruncate(file.fileno(), content.rfind(b"\n") + 1)
    return content.index(b"\n") + 1 if b"\n" in content else len(content) + 1


def _lock(file: IO[bytes] | FileIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise QueueError(
            f"offline queue {path}: a process that still runs sends it; wait until that has ended"
        ) from error


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold a file for the block, against a run that still writes to it and another replay."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise QueueError(f"offline queue {path}: {error.strerror or error}") from error
    with file:
        _lock(file, path)
        if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
            raise QueueError(f"offline queue {path}: it was sent by another process meanwhile")
        yield
