"""Sessions: the state of a sequence between requests, so that each new vector costs the same.

A session stays with the version that began it. When the service has moved on by two versions, it
ends.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ocp_mamba.errors import RequestError
from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.service.settings import ServiceSettings
from ocp_mamba.service.version import Version

REMEMBERED = 10_000
"""Ended sessions whose reason is kept."""


@dataclass(eq=False)
class Session:
    """One sequence under way.

    Attributes:
        id: names it in requests.
        version: computes it.
        cache: its state, of one sequence; None before the first vector.
        tmd: float32 ``(16,)`` or None.
        position: vectors read so far.
        predicted: ``(768,)``, what follows them; None before the first vector.
    """

    id: str
    version: Version
    cache: InferenceCache
    tmd: np.ndarray | None
    made: float
    used: float
    position: int = 0
    predicted: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its state."""
        return sum(tensor.nbytes for tensor in self.cache.tensors())


class Sessions:
    """All sessions of a service; used in the event loop only."""

    def __init__(
        self, settings: ServiceSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep the limits; ``clock`` gives seconds."""
        self._settings, self._clock = settings, clock
        self._open: dict[str, Session] = {}
        self._ended: OrderedDict[str, str] = OrderedDict()

    def __len__(self) -> int:
        """Number of open sessions."""
        return len(self._open)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(session.nbytes for session in self._open.values())

    def open(self, version: Version, tmd: np.ndarray | None) -> Session:
        """Begin a session of no vectors.

        Raises:
            RequestError: there are too many (429); says when the next one ends.
        """
        self.end_old()
        now, s = self._clock(), self._settings
        session = Session(
            secrets.token_urlsafe(12),
            version,
            version.model.allocate_inference_cache(1),
            tmd,
            now,
            now,
        )
        if len(self._open) >= s.max_sessions:
            raise self._full(f"{len(self._open):,} sessions are open, at most {s.max_sessions:,}")
        if self.nbytes + session.nbytes > s.session_bytes:
            raise self._full(
                f"the states of {len(self._open):,} open sessions take {self.nbytes:,} bytes, at "
                f"most {s.session_bytes:,}"
            )
        self._open[session.id] = session
        return session

    def _full(self, found: str) -> RequestError:
        now = self._clock()
        ends = min((self._end_of(s) for s in self._open.values()), default=now)
        return RequestError(
            f"{found}; DELETE one that is no longer needed, or ask again later",
            429,
            max(1, round(ends - now)),
        )

    def _end_of(self, session: Session) -> float:
        s = self._settings
        return min(session.used + s.session_idle, session.made + s.session_age)

    def get(self, name: str) -> Session:
        """Return an open session; its idle time begins anew.

        Raises:
            RequestError: it has ended (410), or there never was one (404).
        """
        self.end_old()
        session = self._open.get(name)
        if session is not None:
            session.used = self._clock()
            return session
        if name in self._ended:
            raise RequestError(f"the session has ended: {self._ended[name]}; begin a new one", 410)
        raise RequestError(f"there is no session {name[:40]!r}; POST /v1/sessions begins one", 404)

    def seconds_left(self, session: Session) -> float:
        """Return the seconds after which a session ends if it is not used."""
        return self._end_of(session) - self._clock()

    def end(self, name: str, reason: str = "it was deleted") -> None:
        """End a session and free its state."""
        if self._open.pop(name, None) is not None:
            self._ended[name] = reason
            while len(self._ended) > REMEMBERED:
                self._ended.popitem(last=False)

    def end_old(self) -> None:
        """End the sessions that are too old or were not used for too long."""
        now, s = self._clock(), self._settings
        for session in list(self._open.values()):
            if now - session.used >= s.session_idle:
                self.end(session.id, f"it was not used for {s.session_idle:,.0f} s")
            elif now - session.made >= s.session_age:
                self.end(session.id, f"it was {s.session_age:,.0f} s old")

    def keep_only(self, versions: tuple[Version, ...]) -> None:
        """End the sessions of all other versions, whose weights would stay in memory."""
        for session in list(self._open.values()):
            if session.version not in versions:
                self.end(
                    session.id,
                    f"version {session.version.version}, which began it, no longer serves",
                )
