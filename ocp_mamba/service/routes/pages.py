"""The pages for people, ``/`` and ``/docs``, and what programs watch: ``/ready``, ``/metrics``."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response
from jinja2 import Environment, PackageLoader

from ocp_mamba.service.routes.predict import REFUSALS
from ocp_mamba.service.schemas import JSON, ReadyAnswer, as_json
from ocp_mamba.service.state import Service

METRICS = "text/plain; version=0.0.4; charset=utf-8"


def routes(service: Service) -> APIRouter:
    """Return the routes around a service."""
    router = APIRouter(tags=["service"])

    @router.get("/", include_in_schema=False)
    async def page() -> Response:
        return _html(_page("index.html"))

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        template = _templates().get_template("docs.html")
        return _html(template.render(api=request.app.openapi()))

    @router.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(_page("icon.svg"), media_type="image/svg+xml")

    @router.get(
        "/ready",
        response_model=None,
        responses={200: {"model": ReadyAnswer}, 503: {"model": ReadyAnswer}},
        summary="Which version serves, and why it is not another one",
    )
    async def ready() -> Response:
        """503 only while the service stops. A version that cannot be loaded is a `problem`."""
        content = {
            "ready": not service.stopping,
            "model": service.serving.identity,
            "source": str(service.source),
            "problem": service.follower.problem,
        }
        return Response(as_json(content), 503 if service.stopping else 200, media_type=JSON)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={401: REFUSALS[401]},
        summary="Counters in Prometheus' text format",
    )
    async def metrics() -> Response:
        """Requests, batches, sessions, the version that serves, and this process."""
        return Response(service.show_metrics(), media_type=METRICS)

    return router


@cache
def _page(name: str) -> str:
    return (files("ocp_mamba.service") / "templates" / name).read_text(encoding="utf-8")


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("ocp_mamba.service"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _html(page: str) -> Response:
    """A page that may load nothing but its own scripts and styles, and ask this service."""
    hashes = {
        kind: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"
            for part in re.findall(rf"<{kind}>(.*?)</{kind}>", page, re.DOTALL)
        )
        or "'none'"
        for kind in ("script", "style")
    }
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"}
    return Response(page, 200, headers, "text/html")
