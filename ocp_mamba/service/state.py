"""A running service: the version that serves, the queue, the sessions, the alias."""

from __future__ import annotations

import asyncio

from ocp_mamba.service.batcher import BatchDone, Batcher
from ocp_mamba.service.drift import Drift
from ocp_mamba.service.follower import Follower
from ocp_mamba.service.metrics import Metrics
from ocp_mamba.service.sessions import Sessions
from ocp_mamba.service.settings import ServiceSettings
from ocp_mamba.service.source import Source
from ocp_mamba.service.version import Version

SWEEP_SECONDS = 5.0
"""How often old sessions are looked for."""


class Service:
    """What the routes of an app share.

    Attributes:
        settings: its limits.
        serving: the version that new requests are answered by; a batch has one version.
        stopping: whether it takes no more requests.
    """

    def __init__(
        self,
        source: Source,
        settings: ServiceSettings | None = None,
        drift: Drift | None = None,
    ) -> None:
        """Load the source's version; `start` begins to compute.

        Args:
            source: of the model.
            settings: the default ones where none are given.
            drift: is told of each batch, and logs statistics of them.

        Raises:
            OcpMambaError: the version cannot be loaded.
        """
        self.settings = settings or ServiceSettings()
        self.source, self.metrics = source, Metrics()
        self.serving = source.load(source.current())
        self.stopping = False
        self.drift = drift
        self._before: Version | None = None
        self.batcher = Batcher(
            self.settings.max_batch, self.settings.max_queue, on_batch=self._count
        )
        self.sessions = Sessions(self.settings)
        self.follower = Follower(
            source, self.serving.version, self._load, self._take, self.settings.poll_seconds
        )
        self.metrics.model.labels(**self.serving.identity).set(1)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the threads; called in the event loop."""
        self._loop = asyncio.get_running_loop()
        self.batcher.start()
        if self.drift is not None:
            self.drift.start()
        if self.source.follows:
            self.follower.start()
        self._sweeper = self._loop.create_task(self._sweep())

    async def stop(self) -> None:
        """Compute what waits, then end the threads."""
        self.stopping = True
        self.follower.stop()
        if self._sweeper is not None:
            self._sweeper.cancel()
        await asyncio.to_thread(self.batcher.stop)
        if self.drift is not None:
            await asyncio.to_thread(self.drift.stop)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            self.sessions.end_old()

    def _load(self, number: str) -> Version:
        """Return a version; the one before is still in memory, so that a rollback takes no time."""
        before = self._before
        if before is not None and before.version == number:
            return before
        return self.source.load(number)

    def _take(self, version: Version) -> None:
        """Let another version serve; called in the follower's thread."""
        assert self._loop is not None
        asyncio.run_coroutine_threadsafe(self.switch(version), self._loop).result()

    async def switch(self, version: Version) -> None:
        """Let a loaded version answer all requests that come from now on.

        Those that wait already are answered by the version that they were read for.
        """
        self._before, self.serving = self.serving, version
        self.sessions.keep_only((self.serving, self._before))
        self.metrics.model.clear()
        self.metrics.model.labels(**version.identity).set(1)
        self.metrics.switches.inc()

    def _count(self, done: BatchDone) -> None:
        self.metrics.batch_chains.observe(len(done.chains))
        self.metrics.batch_seconds.observe(done.seconds)
        if self.drift is not None:
            self.drift.see(done)

    def show_metrics(self) -> bytes:
        """Return the text of ``/metrics``, with the numbers that are read only now."""
        m = self.metrics
        m.queue.set(self.batcher.waiting)
        m.sessions.set(len(self.sessions))
        m.session_bytes.set(self.sessions.nbytes)
        m.follow_failures.set(self.follower.failures)
        m.follow_problem.set(self.follower.problem is not None)
        return m.text()
