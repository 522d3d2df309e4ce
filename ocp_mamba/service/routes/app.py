"""The FastAPI app of a service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from ocp_mamba.config import __version__
from ocp_mamba.service.guard import Guard, add_error_answers
from ocp_mamba.service.routes import pages, predict, scoring, sessions
from ocp_mamba.service.state import Service

DESCRIPTION = """
Predicts what follows chains of concepts: the next vector, and the concepts nearest to it. A score
is the cosine of a concept's vector to the predicted one, from -1 to 1.
"""


def create_app(service: Service) -> FastAPI:
    """Return the app around a service, which it starts and stops."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="ocp-mamba serve",
        version=__version__,
        description=DESCRIPTION,
        docs_url=None,  # FastAPI's pages load their scripts from an outside host
        redoc_url=None,
        lifespan=lifespan,
    )
    for module in (predict, sessions, scoring, pages):
        app.include_router(module.routes(service))
    add_error_answers(app)
    _answer_bad_queries_with_400(app)
    app.add_middleware(Guard, service=service)
    return app


def _answer_bad_queries_with_400(app: FastAPI) -> None:
    """Let the OpenAPI document say so too: FastAPI writes its own 422 into it."""
    written = app.openapi

    def openapi() -> dict[str, Any]:
        document = written()
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
