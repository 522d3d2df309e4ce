"""How this process is told to stop, and how another process can know that it has ended."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import FrameType

import psutil

EXIT_KILLED = 128 + signal.SIGTERM
WATCH_SECONDS = 1.0
START_TOLERANCE_SECONDS = 1.0

HOST_TAG, PID_TAG, START_TAG = "process.host", "process.pid", "process.start_time"
WORKER_TAG = "process.worker/"


class Killed(SystemExit):
    """Raised in the main thread on SIGTERM; not caught, the process exits with 143."""

    def __init__(self, reason: str) -> None:
        """Keep why the process was told to stop."""
        super().__init__(EXIT_KILLED)
        self.reason = reason


def process_tags() -> dict[str, str]:
    """Return host, pid and start time (Unix seconds) of this process, for `process_is_gone`."""
    me = psutil.Process()
    return {
        HOST_TAG: socket.gethostname(),
        PID_TAG: str(me.pid),
        START_TAG: f"{me.create_time():.2f}",
    }


def worker_tag() -> tuple[str, str]:
    """Return this process's tag on a run that several processes write to."""
    tags = process_tags()
    return f"{WORKER_TAG}{tags[HOST_TAG]}/{tags[PID_TAG]}", tags[START_TAG]


def workers_of(tags: dict[str, str]) -> list[dict[str, str]]:
    """Return the process tags of each worker that a run's tags name."""
    found = []
    for name, started in tags.items():
        if name.startswith(WORKER_TAG):
            host, _, pid = name.removeprefix(WORKER_TAG).rpartition("/")
            found.append({HOST_TAG: host, PID_TAG: pid, START_TAG: started})
    return found


def process_is_gone(tags: dict[str, str]) -> bool | None:
    """Return whether the process of these tags has ended; None if this host cannot know."""
    if tags.get(HOST_TAG) != socket.gethostname() or not {PID_TAG, START_TAG} <= set(tags):
        return None
    try:
        process = psutil.Process(int(tags[PID_TAG]))
        same = abs(process.create_time() - float(tags[START_TAG])) <= START_TOLERANCE_SECONDS
        return not same or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def processes_with(variable: str, value: str) -> list[int]:
    """Return the ids of this host's readable processes that were started with a variable set."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(variable) == value:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


def mlflow_run_ancestor() -> psutil.Process | None:
    """Return the nearest ancestor process that is an ``mlflow run`` command, or None."""
    for ancestor in psutil.Process().parents():
        try:
            words = [Path(word).name for word in ancestor.cmdline()]
        except psutil.Error:
            continue
        if ("mlflow", "run") in pairwise(words):
            return ancestor
    return None


@contextmanager
def stop_signals(watched: psutil.Process | None = None) -> Iterator[None]:
    """Within the block SIGTERM raises `Killed`, and so does the end of a watched process.

    A second SIGTERM is ignored until the block's end, so that the clean-up after the first one can
    finish. Does nothing outside the main thread, where signals cannot be handled.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reason = ["SIGTERM"]

    def handle(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Killed(reason[0])

    stop = threading.Event()

    def watch(process: psutil.Process) -> None:
        while not stop.wait(WATCH_SECONDS):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                reason[0] = f"the mlflow run command (process {process.pid}) ended"
                os.kill(os.getpid(), signal.SIGTERM)
                return

    previous = signal.signal(signal.SIGTERM, handle)
    if watched is not None:
        threading.Thread(target=watch, args=(watched,), daemon=True, name="watch").start()
    try:
        yield
    finally:
        stop.set()
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within the block SIGTERM and Ctrl-C are ignored, so that the end of the run can be logged.

    Ctrl-C on ``mlflow run`` reaches its child as Ctrl-C and, a moment later, as SIGTERM.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
