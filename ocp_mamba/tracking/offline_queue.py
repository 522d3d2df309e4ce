"""A queue of tracking operations that keeps them while the tracking server does not answer.

Operations are JSON objects, each harmless to apply twice. What cannot be applied waits in a JSONL
file, in order. The file's first line names the store that it is for; `replay_queue` applies the
operations that wait in a file.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocp_mamba.errors import QueueError, first_line
from ocp_mamba.system.files import atomic_write
from ocp_mamba.system.parsing import json_lines

Operation = dict[str, Any]
Apply = Callable[[Operation], Any]

QUEUE_VERSION = 1
VERSION_KEY, OLD_VERSION_KEY = "queue_version", "spool_version"
"""The key of the version in a file's first line, and the one that ``.spool.jsonl`` files have."""

RETRY_SECONDS = 10.0
"""How long after a failure the store is left alone; each try may block for seconds."""

log = logging.getLogger(__name__)


def _warn(message: str, *values: object) -> None:
    """Log a warning, also after MLflow has made a new store in this process.

    Its migrations load a logging configuration that disables every logger that exists by then.
    """
    log.disabled = False
    log.warning(message, *values)


class OfflineQueue:
    """Applies operations in order; keeps those that fail in a file, and tries them again later."""

    def __init__(
        self,
        path: Path,
        apply: Apply,
        *,
        store: str,
        failures: tuple[type[Exception], ...],
    ) -> None:
        """Create an empty queue; no file is written before something fails.

        Args:
            path: where operations wait.
            apply: does one operation.
            store: the tracking URI the operations are for.
            failures: what ``apply`` raises when the store cannot be used; all else is passed on.
        """
        self.path = path
        self.pending: list[Operation] = []
        self._apply = apply
        self._store = store
        self._failures = failures
        self._failed_at = -math.inf

    def send(self, operation: Operation) -> Any:
        """Apply what waits, then the operation; returns its result, or None if it has to wait."""
        if not self.drain():
            self.append(operation)
            return None
        try:
            return self._apply(operation)
        except self._failures as error:
            _warn(
                "tracking store %s: %s. Training goes on; what it logs is kept in %s and sent "
                "when the store answers again.",
                self._store,
                first_line(error),
                self.path,
            )
            self._failed_at = time.monotonic()
            self.append(operation)
            return None

    def drain(self, *, now: bool = False) -> bool:
        """Apply what waits, in order; returns whether nothing waits any more.

        Within `RETRY_SECONDS` of a failure it tries only if told to try ``now``.
        """
        if not self.pending:
            return True
        if not now and time.monotonic() - self._failed_at < RETRY_SECONDS:
            return False
        waiting = len(self.pending)
        try:
            while self.pending:
                self._apply(self.pending[0])
                self.pending.pop(0)
        except self._failures:
            self._failed_at = time.monotonic()
        if len(self.pending) < waiting:
            self._write()
        if not self.pending:
            _warn("tracking store %s answers again; %d kept operations sent", self._store, waiting)
        return not self.pending

    def append(self, operation: Operation) -> None:
        """Let an operation wait."""
        self.pending.append(operation)
        self._write()

    def _write(self) -> None:
        if not self.pending:
            self.path.unlink(missing_ok=True)
            return
        header = {VERSION_KEY: QUEUE_VERSION, "store": self._store}
        lines = [json.dumps(line) for line in [header, *self.pending]]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as file:
            file.write(("\n".join(lines) + "\n").encode())


def read_queue(path: Path) -> tuple[str, list[Operation]]:
    """Return the store's URI and the waiting operations of an offline queue's file.

    Files of earlier versions of this package, named ``.spool.jsonl``, are read too.

    Raises:
        QueueError: the file is missing, or a line is not what an offline queue holds.
    """
    lines = list(json_lines(path, QueueError, "offline queue"))
    header = lines[0][1] if lines else {}
    version = header.get(VERSION_KEY, header.get(OLD_VERSION_KEY))
    if version != QUEUE_VERSION or not isinstance(header.get("store"), str):
        raise QueueError(
            f"offline queue {path}, line 1: wanted an object with {VERSION_KEY} {QUEUE_VERSION} "
            "and store"
        )
    for number, operation in lines[1:]:
        if not isinstance(operation.get("op"), str):
            raise QueueError(f"offline queue {path}, line {number}: key op is missing")
    return header["store"], [operation for _, operation in lines[1:]]


def replay_queue(
    path: Path, apply: Apply, *, store: str, failures: tuple[type[Exception], ...]
) -> int:
    """Apply the operations of a file in order and delete it; returns how many there were.

    Raises:
        QueueError: the file cannot be read, or an operation fails; the file then holds it and
            what follows it, so that the next replay goes on there.
    """
    _, operations = read_queue(path)
    queue = OfflineQueue(path, apply, store=store, failures=failures)
    for done, operation in enumerate(operations):
        try:
            apply(operation)
        except failures as error:
            queue.pending = operations[done:]
            queue._write()
            raise QueueError(
                f"offline queue {path}: {done} of {len(operations)} operations sent to {store}, "
                f"then {operation['op']} failed: {first_line(error)}"
            ) from error
    path.unlink()
    return len(operations)
