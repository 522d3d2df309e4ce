"""What every request passes: host, token, size and time of its body; and the form of errors."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from typing import Any

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ocp_mamba.errors import RequestError
from ocp_mamba.service.settings import ServiceSettings
from ocp_mamba.service.state import Service

VERSION_HEADER = "X-Model-Version"
OPEN = frozenset({"/", "/docs", "/ping", "/health", "/ready", "/version", "/favicon.ico"})
"""Routes that need no token: they show nothing but that the service is there."""

LONGEST = 800
"""Characters of an error's message; with its frame it stays below 1 kB."""

HTTP_CODES = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "RESOURCE_DOES_NOT_EXIST",
    408: "BAD_REQUEST",
    413: "BAD_REQUEST",
    415: "BAD_REQUEST",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
}
"""MLflow's names of errors, for its own route."""


class Guard:
    """ASGI middleware: refuses strangers, and counts and marks each answer."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        """Stand before an app."""
        self.app, self.service = app, service
        token = service.settings.token
        self._token = None if token is None else f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                if VERSION_HEADER not in headers:
                    headers[VERSION_HEADER] = self.service.serving.version
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            refused = self._refusal(scope)
            if refused is not None:
                await answer_of(refused, scope["path"])(scope, receive, marked)
            else:
                await self.app(scope, receive, marked)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            m = self.service.metrics
            m.requests.labels(route, scope["method"], status).inc()
            m.request_seconds.labels(route).observe(time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> RequestError | None:
        """Why a request is not even read, or None."""
        headers = Headers(scope=scope)
        settings = self.service.settings
        if self._token is not None:
            given = headers.get("authorization", "").encode()
            if scope["path"] not in OPEN and not hmac.compare_digest(given, self._token):
                found = "another one" if given else "none"
                return RequestError(
                    f"the header 'Authorization: Bearer TOKEN' is wanted, {found} found", 401
                )
        elif settings.only_loopback and not _is_loopback(headers.get("host", "")):
            return RequestError(
                "the service answers this machine only, and the request's Host header names "
                "another one; start the service with a token, or with --host",
                403,
            )
        return None


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine; a page of a stranger's name does not."""
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    name = name.strip("[]")
    if name in ("", "localhost", "testserver"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def read_body(request: Request, settings: ServiceSettings) -> bytes:
    """Return a request's body, and stop reading where it is too large or too slow.

    Raises:
        RequestError: it is larger than the limit (413), or did not arrive in time (408).
    """
    limit, declared = settings.body_limit, request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 15 or int(declared) > limit):
        raise _too_large(f"{declared[:15]} bytes", limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(f"more than {limit:,} bytes", limit)
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            f"the body did not arrive within {settings.body_seconds:g} s: {size:,} bytes found", 408
        ) from None
    return b"".join(parts)


def _too_large(found: str, limit: int) -> RequestError:
    return RequestError(
        f"the body has {found}, at most {limit:,} are taken; send fewer chains at once, or vectors "
        "as application/x-npy",
        413,
    )


def answer_of(error: RequestError, path: str) -> Response:
    """Return the answer that tells an error, in the form that the route's clients know."""
    message = str(error)
    if len(message) > LONGEST:
        message = message[: LONGEST - 1] + "…"
    if path == "/invocations":
        content: dict[str, Any] = {
            "error_code": HTTP_CODES.get(error.status, "BAD_REQUEST"),
            "message": message,
        }
    else:
        content = {"detail": message}
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 408:
        headers["Connection"] = "close"  # the rest of the body is not waited for
    return Response(orjson.dumps(content), error.status, headers, "application/json")


def add_error_answers(app: FastAPI) -> None:
    """Let an app answer errors in one line, never with what was sent or with a traceback."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        return answer_of(error, request.url.path)

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = str(error.detail)
        if error.status_code == 404:
            message = f"there is no route {request.url.path[:100]}; GET /docs lists all"
        answer = answer_of(RequestError(message, error.status_code), request.url.path)
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return answer_of(RequestError(first_problem(error.errors()), 400), request.url.path)

    async def failed(request: Request, error: Exception) -> Response:
        message = "the service failed on this request; its log has the reason"
        return answer_of(RequestError(message, 500), request.url.path)

    app.add_exception_handler(RequestError, refused)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, failed)


def first_problem(problems: Any) -> str:
    """Return the first of pydantic's problems in one line, without what was sent."""
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"the parameter {str(first['loc'][-1])[:60]!r} is unknown"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return f"{place[:100]}: {first['msg'][:300]}{more}"
