"""The HTTP server around an app: uvicorn, in this process, with a limit on slow connections."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ocp_mamba.service.settings import ServiceSettings

KEEP_ALIVE_SECONDS = 30
BACKLOG = 2048
HEAD_LIMIT = 2**16
"""Bytes of a request's head."""


class TimedProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which closes a connection whose request does not arrive.

    uvicorn waits for ever for the rest of a request's head, of any size, and for the rest of a body
    that was refused. Each such connection keeps a handle of the process.

    Attributes:
        head_seconds: time in which a request's head must have arrived.
    """

    head_seconds = 10.0
    _timer: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take a part of a request."""
        super().data_received(data)
        drained = self.cycle is not None and self.cycle.more_body  # a body that was refused
        self._head_bytes = 0 if self._answering or drained else self._head_bytes + len(data)
        if self._head_bytes > HEAD_LIMIT and not self.transport.is_closing():
            self.send_400_response(f"The head of the request has more than {HEAD_LIMIT} bytes.")
        self._watch()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._head_bytes = 0
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._forget()
        super().connection_lost(exc)

    @property
    def _answering(self) -> bool:
        """Whether a request's head has arrived, and its answer has not been sent."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        """Start the clock where a request is not whole, and stop it where it is."""
        kept_alive = self.timeout_keep_alive_task is not None
        if self._answering or kept_alive or self.transport.is_closing():
            self._forget()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def bound(host: str, port: int) -> socket.socket:
    """Return a socket that has its address and does not listen yet.

    Raises:
        OSError: the address cannot be used; says which one.
    """
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(where)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(
            f"port {port} of {host} cannot be used: {reason}; choose another one: --port, --host"
        ) from error
    return found


class Server(uvicorn.Server):
    """uvicorn's server, which tells when it listens and ends with 0 when it is told to stop."""

    def __init__(
        self, config: uvicorn.Config, where: socket.socket, on_start: Callable[[str], None]
    ) -> None:
        """Keep the socket, and what to call with its address."""
        super().__init__(config)
        self._where, self._on_start = where, on_start

    async def startup(self, sockets: Any = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            host, port = self._where.getsockname()[:2]
            self._on_start(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def run(self, sockets: Any = None) -> None:
        """Serve until a signal; requests under way are answered first."""
        with self.capture_signals():
            with asyncio.Runner(loop_factory=self.config.get_loop_factory()) as runner:
                runner.run(self._serve([self._where]))
            self._captured_signals.clear()  # it was obeyed: the process need not end by it


def server_of(
    app: FastAPI,
    settings: ServiceSettings,
    where: socket.socket,
    on_start: Callable[[str], None],
) -> Server:
    """Return a server of an app; its `run` ends by SIGTERM or Ctrl-C.

    What was taken by then is answered.

    Args:
        app: of `routes.app.create_app`.
        settings: the limits.
        where: as `bound` returns it.
        on_start: called with the address once it listens.
    """
    config = uvicorn.Config(
        app,
        http=type("Protocol", (TimedProtocol,), {"head_seconds": settings.head_seconds}),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.stop_seconds,
    )
    return Server(config, where, on_start)
