"""Following an alias: a thread that asks which version is to serve, and loads it before it does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ocp_mamba.errors import first_line
from ocp_mamba.service.source import Source
from ocp_mamba.service.version import Version

RETRY_SECONDS = 30.0
"""A version that could not be loaded is tried again after this time."""

log = logging.getLogger(__name__)


class Follower:
    """Keeps the version that serves the one that the source names.

    Attributes:
        problem: why it is not, in one line; None while it is.
        failures: versions that could not be loaded, and look-ups that failed, since the start.
    """

    def __init__(
        self,
        source: Source,
        serving: str,
        load: Callable[[str], Version],
        on_version: Callable[[Version], None],
        poll_seconds: float,
    ) -> None:
        """Prepare; `start` begins to ask.

        Args:
            source: is asked.
            load: returns a version, loaded and warm.
            serving: the version that serves already.
            on_version: called in the thread with each further version, loaded and warm.
            poll_seconds: between two questions.
        """
        self.problem: str | None = None
        self.failures = 0
        self._source, self._serving = source, serving
        self._load, self._on_version, self._poll_seconds = load, on_version, poll_seconds
        self._failed: tuple[str, float] = ("", 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end; a look-up under way is not waited for."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.look()
            except Exception as error:  # the registry or a version's files fail in any way
                self.failures += 1
                if self.problem != first_line(error):
                    log.warning("version %s stays: %s", self._serving, first_line(error))
                self.problem = first_line(error)

    def look(self) -> None:
        """Ask once, and load the version named if it does not serve yet.

        Raises:
            OcpMambaError: the source cannot be asked, or the version cannot be loaded.
        """
        wanted = self._source.current()
        if wanted == self._serving:
            self.problem = None
            return
        failed, at = self._failed
        if wanted == failed and time.monotonic() < at + RETRY_SECONDS:
            return
        try:
            version = self._load(wanted)
        except Exception:
            self._failed = (wanted, time.monotonic())
            raise
        self._on_version(version)
        self._serving, self.problem, self._failed = wanted, None, ("", 0.0)
        log.info("version %s serves now", wanted)
