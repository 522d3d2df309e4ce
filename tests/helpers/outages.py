"""A real HTTP server in front of a tracking server that can stop answering in seven ways."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

KINDS = ("refused", "hanging", "500", "401", "HTML with 200", "slow", "answer lost")
"""What a store that is out of order does: it takes no connection; it takes one and is silent; it
answers with an error; a proxy asks for a login, or answers with its own page; each answer takes
long; the request is done but its answer does not arrive."""

PAGE = b"<html><body>Welcome to the gateway. Please log in.</body></html>"
OWN_HEADERS = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}


class OutageProxy:
    """Hands requests on to ``upstream``, but for the time of an outage."""

    def __init__(self, upstream: str, *, slow_seconds: float = 0.3) -> None:
        self._upstream = urlsplit(upstream)
        self.slow_seconds = slow_seconds
        self.kind: str | None = None
        self.requests = 0
        """How many requests came in during outages."""
        self._over = threading.Event()
        self._port = 0
        self._server: ThreadingHTTPServer | None = None
        self._listen()
        self.url = f"http://127.0.0.1:{self._port}"

    def begin(self, kind: str) -> None:
        assert kind in KINDS
        self._over.clear()
        self.kind = kind
        if kind == "refused":
            self._close()

    def end(self) -> None:
        self.kind = None
        self._over.set()
        if self._server is None:
            self._listen()

    def close(self) -> None:
        self.kind = None
        self._over.set()
        self._close()

    def _listen(self) -> None:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Listener(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True
            request_queue_size = 64

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # a client that gave up; it says so itself

        self._server = Listener(("127.0.0.1", self._port), Handler)
        self._port = self._server.server_port
        threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True, name="proxy"
        ).start()

    def _close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, handler: _Handler) -> None:
        length = int(handler.headers.get("Content-Length") or 0)
        body = handler.rfile.read(length) if length else None
        kind = self.kind
        if kind is not None:
            self.requests += 1
        if kind == "hanging":
            self._over.wait()
            handler.hang_up()
        elif kind in ("500", "401"):
            handler.reply(int(kind), "text/plain", b"the gateway is out of order")
        elif kind == "HTML with 200":
            handler.reply(200, "text/html", PAGE)
        else:
            if kind == "slow":
                self._over.wait(self.slow_seconds)
            status, content_type, content = self._forward(handler, body)
            if kind == "answer lost":
                handler.hang_up()
            else:
                handler.reply(status, content_type, content)

    def _forward(self, handler: _Handler, body: bytes | None) -> tuple[int, str, bytes]:
        assert self._upstream.hostname
        connection = http.client.HTTPConnection(
            self._upstream.hostname, self._upstream.port, timeout=120
        )
        headers = {k: v for k, v in handler.headers.items() if k.lower() not in OWN_HEADERS}
        try:
            connection.request(handler.command, handler.path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers.get_content_type(), response.read()
        finally:
            connection.close()


class _Handler(BaseHTTPRequestHandler):
    owner: OutageProxy

    def reply(self, status: int, content_type: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: object) -> None:
        pass

    def _any(self) -> None:
        self.owner.answer(self)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _any


def wait_until(condition: object, seconds: float = 120.0) -> None:
    """Wait for a condition; a slow machine has two minutes."""
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not so within {seconds:.0f} s"
        time.sleep(0.02)
