"""One thread that computes, and the bounded queue before it.

Whatever waits when the thread becomes free is computed together, so that no request waits for
others to come, and many requests at once share one pass over the weights. All calls of the model
are made here: torch's threads serve one computation at a time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np

from ocp_mamba.errors import RequestError
from ocp_mamba.service.version import Chain, Predicted, Version

T = TypeVar("T")
RATE_MEMORY = 0.8
"""Share of the former rate of chains in the estimate of the current one."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Work:
    """Chains of one request that wait."""

    version: Version
    chains: Sequence[Chain]
    steps: int
    top_k: int
    future: asyncio.Future[Any]
    since: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True)
class BatchDone:
    """What is told of each computed batch.

    Attributes:
        chains: that were read.
        answers: one for each request, of one version.
        seconds: that the model took.
        waited: seconds that the oldest request waited before.
    """

    chains: Sequence[Chain]
    answers: Sequence[Predicted]
    seconds: float
    waited: float


class Batcher:
    """Computes predictions and calls in one thread, in batches; see the module."""

    def __init__(
        self, max_batch: int, max_queue: int, on_batch: Callable[[BatchDone], None] | None = None
    ) -> None:
        """Prepare; `start` begins to compute.

        Args:
            max_batch: chains computed at once, at most.
            max_queue: chains and calls that may wait.
            on_batch: called in the thread after each batch.
        """
        self.max_batch, self.max_queue = max_batch, max_queue
        self._on_batch = on_batch
        self._works: deque[_Work] = deque()
        self._calls: deque[tuple[Callable[[], Any], asyncio.Future[Any]]] = deque()
        self._waiting, self._rate = 0, 0.0
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    @property
    def waiting(self) -> int:
        """Chains and calls that wait."""
        return self._waiting

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Compute what waits, then end the thread; blocks until it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    async def predict(
        self, version: Version, chains: Sequence[Chain], steps: int = 1, top_k: int = 0
    ) -> Predicted:
        """Return what follows some chains.

        Args:
            version: computes all of them.
            chains: 1 or more; more than a batch holds are computed in several.
            steps: vectors ahead.
            top_k: concepts to name for each; 0 for none.

        Raises:
            RequestError: too many wait already (429), or there are more than may ever wait (413).
        """
        parts = [chains[i : i + self.max_batch] for i in range(0, len(chains), self.max_batch)]
        loop = asyncio.get_running_loop()
        works = [_Work(version, part, steps, top_k, loop.create_future()) for part in parts]
        with self._changed:
            self._admit(len(chains))
            self._works.extend(works)
            self._changed.notify()
        if len(works) == 1:
            found: Predicted = await works[0].future
            return found
        return _joined(await asyncio.gather(*(work.future for work in works)))

    async def call(self, function: Callable[[], T]) -> T:
        """Return what a function returns that is called in the thread, between two batches.

        Raises:
            RequestError: too many wait already (429).
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        with self._changed:
            self._admit(1)
            self._calls.append((function, future))
            self._changed.notify()
        return await future

    def _admit(self, n: int) -> None:
        if self._stopping:
            raise RequestError("the service stops; it takes no more requests", 503, 5)
        if n > self.max_queue:
            raise RequestError(
                f"the request holds {n:,} chains, at most {self.max_queue:,} can be taken at "
                "once; send it in parts",
                413,
            )
        if self._waiting + n > self.max_queue:
            seconds = math.ceil(self._waiting / self._rate) if self._rate else 1
            raise RequestError(
                f"{self._waiting:,} chains wait already, and at most {self.max_queue:,} may; "
                "ask again later",
                429,
                min(max(seconds, 1), 60),
            )
        self._waiting += n

    # --- in the thread ---------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._calls or self._works or self._stopping):
                    self._changed.wait()
                if not (self._calls or self._works):
                    return
                calls, self._calls = self._calls, deque()
                works = self._next_batch()
                self._waiting -= len(calls) + sum(len(work.chains) for work in works)
            for function, future in calls:
                _deliver([(future, _outcome(function, future))])
            if works:
                self._compute(works)

    def _next_batch(self) -> list[_Work]:
        """The oldest work, and those that can be computed with it, out of the queue."""
        if not self._works:
            return []
        first, room = self._works[0], self.max_batch
        taken: list[_Work] = []
        left: deque[_Work] = deque()
        for work in self._works:
            alike = work.version is first.version and work.steps == first.steps
            if alike and len(work.chains) <= room:
                taken.append(work)
                room -= len(work.chains)
            else:
                left.append(work)
        self._works = left
        return taken

    def _compute(self, works: list[_Work]) -> None:
        wanted = [work for work in works if not work.future.cancelled()]
        if not wanted:
            return
        begun = time.perf_counter()
        try:
            results: list[Any] = _predict_all(wanted)
        except Exception as error:
            log.exception("a batch of %d requests failed", len(wanted))
            results = [error]
            if len(wanted) > 1:  # none fails because of another's
                results = [_outcome(partial(_predict_one, work), work.future) for work in wanted]
        _deliver(list(zip((work.future for work in wanted), results, strict=True)))
        self._tell(wanted, results, begun)

    def _tell(self, works: list[_Work], results: list[Any], begun: float) -> None:
        seconds = time.perf_counter() - begun
        chains = sum(len(work.chains) for work in works)
        now = chains / max(seconds, 1e-6)
        self._rate = RATE_MEMORY * self._rate + (1 - RATE_MEMORY) * now if self._rate else now
        answers = [result for result in results if isinstance(result, Predicted)]
        if self._on_batch is not None and answers:
            waited = begun - min(work.since for work in works)
            read = [chain for work in works for chain in work.chains]
            try:
                self._on_batch(BatchDone(read, answers, seconds, waited))
            except Exception:  # what watches must not end the thread
                log.exception("a batch was computed, and is missing in the statistics")


def _predict_all(works: Sequence[_Work]) -> list[Predicted]:
    """The predictions of works of one version and number of steps, computed together."""
    chains = [chain for work in works for chain in work.chains]
    together = works[0].version.predict(chains, works[0].steps, max(w.top_k for w in works))
    parts, at = [], 0
    for work in works:
        parts.append(together.part(slice(at, at + len(work.chains)), work.top_k))
        at += len(work.chains)
    return parts


def _predict_one(work: _Work) -> Predicted:
    return _predict_all([work])[0]


def _joined(parts: Sequence[Predicted]) -> Predicted:
    """The parts of one request as one."""

    def all_of(arrays: list[np.ndarray | None]) -> np.ndarray | None:
        known = [array for array in arrays if array is not None]
        return np.concatenate(known) if known else None

    vectors = np.concatenate([part.vectors for part in parts])
    scores, rows = all_of([p.scores for p in parts]), all_of([p.rows for p in parts])
    return Predicted(parts[0].version, vectors, scores, rows)


def _outcome(function: Callable[[], Any], future: asyncio.Future[Any]) -> Any:
    """What a function returns, or its error; None where nobody waits any more."""
    if future.cancelled():
        return None
    try:
        return function()
    except Exception as error:
        if not isinstance(error, RequestError):
            log.exception("a call failed")
        return error


def _deliver(results: list[tuple[asyncio.Future[Any], Any]]) -> None:
    """Set futures of one event loop from another thread."""
    if not results:
        return
    loop = results[0][0].get_loop()

    def set_all() -> None:
        for future, result in results:
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

    if not loop.is_closed():
        loop.call_soon_threadsafe(set_all)
