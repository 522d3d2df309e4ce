"""The thread that sends operations to the tracking store, so that no training waits for it.

`Sender.send` writes an operation to the offline queue's file and returns: that takes milliseconds,
whatever the store does. The thread applies what waits, in order, and tries again where the store
does not answer.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from ocp_mamba.redact import redact
from ocp_mamba.system.logs import warn
from ocp_mamba.tracking.offline_queue import Apply, IsRefusal, OfflineQueue, Operation, said_by

FIRST_RETRY_SECONDS, RETRY_SECONDS = 1.0, 10.0
"""How long after a failure the store is tried again: at first, and at most; it doubles."""

FAILING_SECONDS, SILENT_SECONDS, LONGEST_SECONDS = 30.0, 120.0, 600.0
"""How long the end of a run waits for the store: so long after the last operation that the store
took, where it fails, or leaves a small operation without an answer; where a large one is under way;
and in all."""

SMALL = ("log", "child", "model_input", "end")
"""Operations of a few kB: a store that does not answer one in `FAILING_SECONDS` has failed."""

KILLED_SECONDS = 5.0
"""How long the end of a run waits that was told to stop."""

NOTICE_SECONDS = 2.0
CLOSE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Sender:
    """Sends operations in order, from a thread of its own, and keeps them in a file until then."""

    def __init__(
        self, queue: OfflineQueue, apply: Apply, *, store: str, is_refusal: IsRefusal
    ) -> None:
        """Begin with what a killed process left in the queue's file, if there is one.

        Args:
            queue: the file.
            apply: does one operation.
            store: the address of the store, for messages.
            is_refusal: whether an error concerns one operation only. Others then go first.

        Raises:
            QueueError: the queue's file exists and cannot be gone on with.
        """
        self._queue = queue
        self._apply = apply
        self._is_refusal = is_refusal
        self._store = redact(store)
        self._changed = threading.Condition()
        self._answers: dict[int, Future[Any]] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._hurry = False
        self._failing = False  # whether the last try failed
        self._warned = False
        self._refused = 0  # how many operations in a row were refused, each by itself
        self._all_refused = False
        self._retry_after = FIRST_RETRY_SECONDS
        self._progress_at = -math.inf
        self._waiting_since: float | None = None
        self.cpu_seconds = 0.0
        """Processor time of the thread; while it works, the training may have to share a core."""
        if queue.path.exists():
            queue.adopt()
            self._start()

    def send(self, operation: Operation) -> Future[Any]:
        """Let an operation be sent; it is on the disk when this returns.

        Returns:
            What has the operation's result when the store has taken it.

        Raises:
            QueueError: the file cannot be written.
        """
        answer: Future[Any] = Future()
        with self._changed:
            self._answers[self._queue.append(operation)] = answer
            self._start()
            self._changed.notify_all()
        return answer

    def waiting(self) -> list[Operation]:
        """Return the operations that the store has not taken yet, in order."""
        with self._changed:
            return self._queue.operations()

    def wait(self, seconds: float = math.inf, say: Callable[[str], object] = print) -> bool:
        """Wait until all is sent, but not for longer than the limits above; returns whether it is.

        Args:
            seconds: a further limit.
            say: prints a line for a person, where it takes longer than a moment.
        """
        started = time.monotonic()
        self._waiting_since = self._waiting_since or started
        told = False
        with self._changed:
            self._hurry, self._all_refused = True, False
            self._changed.notify_all()
            while len(self._queue) and not (self._closed or self._all_refused):
                now = time.monotonic()
                left = min(self._patience(now), started + seconds - now)
                if left <= 0:
                    break
                if not told and now - started > NOTICE_SECONDS:
                    told = True
                    say(self._notice(left))
                self._changed.wait(min(left, NOTICE_SECONDS))
            return not len(self._queue)

    def close(self) -> int:
        """End the thread and leave the file to a replay; returns how many operations wait in it.

        A call that hangs in the store is left behind; the thread does nothing after it.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        with self._changed, suppress(OSError):  # a full disk: the file is then whole, but longer
            return self._queue.close()
        return len(self._queue)

    def discard(self) -> None:
        """End the thread and delete what waits."""
        self.close()
        self._queue.path.unlink(missing_ok=True)

    def _patience(self, now: float) -> float:
        """Seconds that are left to wait."""
        assert self._waiting_since is not None
        since = max(self._waiting_since, self._progress_at)
        found = self._queue.first()
        small = found is not None and found[1]["op"] in SMALL
        limit = FAILING_SECONDS if self._failing or small else SILENT_SECONDS
        return min(since + limit, self._waiting_since + LONGEST_SECONDS) - now

    def _notice(self, left: float) -> str:
        return (
            f"Waiting for the tracking store {self._store} to take {len(self._queue)} operations, "
            f"for at most {left:.0f} s after the last one that it takes"
        )

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="tracking")
            self._thread.start()

    def _work(self) -> None:
        while (found := self._next()) is not None:
            number, operation = found
            cpu = time.thread_time()
            try:
                result = self._apply(operation)
            except Exception as error:
                self._failed(operation, error)
            else:
                self._taken(number, result)
            self.cpu_seconds += time.thread_time() - cpu

    def _next(self) -> tuple[int, Operation] | None:
        """Wait for the operation that is next; None when the thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._queue))
            return None if self._closed else self._queue.first()

    def _taken(self, number: int, result: Any) -> None:
        with self._changed:
            if self._closed:
                return
            self._queue.remove(number)
            self._progress_at = time.monotonic()
            self._failing, self._refused, self._retry_after = False, 0, FIRST_RETRY_SECONDS
            if self._warned and not len(self._queue):
                warn(
                    log,
                    "tracking store %s answers again; all kept operations are sent",
                    self._store,
                )
                self._warned = False
            if (answer := self._answers.pop(number, None)) is not None:
                answer.set_result(result)
            self._changed.notify_all()

    def _failed(self, operation: Operation, error: Exception) -> None:
        """Let others go first where the store refuses this operation, else try again later."""
        with self._changed:
            if self._closed:
                return
            self._failing = True
            if not self._warned:
                self._warned = True
                warn(
                    log,
                    "tracking store %s did not take an operation (%s): %s. The job goes on; what "
                    "it logs is kept in %s and sent when the store takes it.",
                    self._store,
                    operation["op"],
                    said_by(error),
                    self._queue.path,
                )
            if self._is_refusal(error):
                self._queue.postpone()
                self._refused += 1
                if self._refused < len(self._queue):
                    return
                self._all_refused = True
            self._refused, self._hurry = 0, False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed or self._hurry, self._retry_after)
            self._retry_after = min(2 * self._retry_after, RETRY_SECONDS)
