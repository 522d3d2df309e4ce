"""``/v1/sessions``: a chain read concept by concept, each at the same cost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from ocp_mamba.errors import RequestError
from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.service.guard import VERSION_HEADER, read_body
from ocp_mamba.service.reading import body_of, chains_of, check_counts
from ocp_mamba.service.routes.predict import REFUSALS, body_schema, require_json
from ocp_mamba.service.schemas import (
    JSON,
    ErrorAnswer,
    PredictBody,
    SessionAnswer,
    SessionBody,
    StepBody,
    as_json,
    step_json,
)
from ocp_mamba.service.sessions import Session
from ocp_mamba.service.state import Service
from ocp_mamba.service.version import Chain, Predicted

MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorAnswer, "description": "There is no such session."},
    410: {"model": ErrorAnswer, "description": "The session has ended; says why."},
}


class RolloutQuery(BaseModel):
    """How far to go."""

    model_config = ConfigDict(extra="forbid")
    steps: int = Field(10, ge=1, description="Steps ahead.")
    top_k: int = Field(5, ge=0, description="Concepts to name for each step; 0 for none.")
    return_vectors: bool = Field(False, description="Also send the predicted vectors.")


def routes(service: Service) -> APIRouter:
    """Return the routes around a service."""
    router = APIRouter(prefix="/v1/sessions", tags=["sessions"])
    settings = service.settings

    @router.post(
        "",
        status_code=201,
        response_model=None,
        responses={201: {"model": SessionAnswer}, **REFUSALS},
        openapi_extra=body_schema(SessionBody),
        summary="Begin a session, empty or with a chain",
    )
    async def begin(request: Request) -> Response:
        """The answer names the session, and what follows the chain it began with."""
        require_json(request)
        body = body_of(SessionBody, await read_body(request, settings))
        version = service.serving
        check_counts(version, body, 1, settings)
        chains = _first_chain(service, body)
        session = service.sessions.open(version, chains.tmd)
        predicted = None
        if len(chains.vectors):
            try:
                predicted = await _append(service, session, chains.vectors, body.top_k)
            except BaseException:
                service.sessions.end(session.id, "it could not be begun")
                raise
        return _answer(service, session, predicted, body.return_vectors, 201)

    @router.get(
        "/{session}",
        response_model=None,
        responses={200: {"model": SessionAnswer}, 401: REFUSALS[401], **MISSING},
        summary="Show where a session stands",
    )
    async def show(session: str) -> Response:
        """Without concepts; looking renews the session's time."""
        return _answer(service, service.sessions.get(session), None, False)

    @router.post(
        "/{session}/step",
        response_model=None,
        responses={200: {"model": SessionAnswer}, **REFUSALS, **MISSING},
        openapi_extra=body_schema(StepBody),
        summary="Append a concept or a vector, and predict the next",
    )
    async def step(session: str, request: Request) -> Response:
        """Costs the same at every position of the chain."""
        require_json(request)
        body = body_of(StepBody, await read_body(request, settings))
        found = service.sessions.get(session)
        if (body.concept is None) == (body.vector is None):
            kind = "neither" if body.concept is None else "both"
            raise RequestError(f"concept or vector is wanted, {kind} found")
        check_counts(found.version, body, 1, settings)
        one = PredictBody.model_construct(
            concepts=None if body.concept is None else [[body.concept]],
            vectors=None if body.vector is None else [[body.vector]],
            top_k=body.top_k,
        )
        [chain], _ = chains_of(found.version, one, settings)
        predicted = await _append(service, found, chain.vectors, body.top_k)
        return _answer(service, found, predicted, body.return_vectors)

    @router.get(
        "/{session}/rollout",
        response_model=None,
        responses={
            200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
            400: REFUSALS[400], 401: REFUSALS[401], 429: REFUSALS[429], **MISSING,
        },
        summary="Go on from a session without changing it, as server-sent events",
    )  # fmt: skip
    async def rollout(session: str, query: Annotated[RolloutQuery, Query()]) -> Response:
        """An event `step` for each step, which holds its number and concepts; then an event `end`.

        Each step reads the best concept before it.
        """
        found = service.sessions.get(session)
        asked = StepBody.model_construct(top_k=query.top_k)
        check_counts(found.version, asked, query.steps, settings)
        if found.predicted is None:
            raise RequestError("the session is empty: it has nothing to go on from")
        state = await service.batcher.call(lambda: (_copied(found), found.predicted))
        headers = {VERSION_HEADER: found.version.version, "Cache-Control": "no-store"}
        events = _events(service, found, *state, query)
        return StreamingResponse(events, 200, headers, "text/event-stream")

    @router.delete(
        "/{session}",
        status_code=204,
        response_class=Response,
        responses={401: REFUSALS[401], **MISSING},
        summary="End a session and free its memory",
    )
    async def end(session: str) -> Response:
        """A session that is not deleted ends by itself when it is not used."""
        service.sessions.end(service.sessions.get(session).id)
        return Response(status_code=204)

    return router


def _first_chain(service: Service, body: SessionBody) -> Chain:
    """The chain that a session begins with, which may be of no vectors."""
    settings, version = service.settings, service.serving
    empty = body.concepts is None and body.vectors is None
    width = version.model.config.d_vector
    one = PredictBody.model_construct(
        concepts=None if body.concepts is None else [body.concepts],
        vectors=[[[1.0] * width]] if empty else None if body.vectors is None else [body.vectors],
        tmd=None if body.tmd is None else [body.tmd],
        codes=None if body.codes is None else [body.codes],
        top_k=body.top_k,
    )
    [chain], _ = chains_of(version, one, settings)
    return Chain(chain.vectors[:0], chain.tmd) if empty else chain


async def _append(service: Service, session: Session, vectors: np.ndarray, top_k: int) -> Predicted:
    """Read vectors ``(L, 768)`` into a session; returns what follows."""

    def read() -> Predicted:
        chain = Chain(vectors, session.tmd)
        predicted = session.version.named(session.version.read(session.cache, chain), top_k)
        session.predicted = predicted.vectors[0, 0]
        session.position += len(vectors)
        return predicted

    return await service.batcher.call(read)


def _copied(session: Session) -> InferenceCache:
    """A copy of a session's state, made between two steps."""
    copy = session.version.model.allocate_inference_cache(1)
    copy.restore(session.cache)
    return copy


async def _events(
    service: Service,
    session: Session,
    cache: InferenceCache,
    predicted: np.ndarray | None,
    query: RolloutQuery,
) -> AsyncIterator[bytes]:
    """The steps of a rollout from a copied state."""
    version, vector = session.version, predicted
    assert vector is not None
    for number in range(1, query.steps + 1):

        def compute(given: np.ndarray = vector, first: bool = number == 1) -> Predicted:
            if not first:
                fed = Chain(version.fed_back(given[None]), session.tmd)
                given = version.read(cache, fed)
            return version.named(given, query.top_k)

        try:
            found = await service.batcher.call(compute)
        except RequestError as error:
            yield _event("error", {"detail": str(error)})
            return
        vector = found.vectors[0, 0]
        yield _event("step", {"step": number, **step_json(found, 0, 0, query.return_vectors)})
    yield _event("end", {"model": version.identity, "steps": query.steps})


def _event(kind: str, content: dict[str, Any]) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + as_json(content) + b"\n\n"


def _answer(
    service: Service,
    session: Session,
    predicted: Predicted | None,
    vectors: bool,
    status: int = 200,
) -> Response:
    step = {"next": []} if predicted is None else step_json(predicted, 0, 0, vectors)
    content = {
        "model": session.version.identity,
        "session": session.id,
        "position": session.position,
        "seconds_left": round(service.sessions.seconds_left(session), 1),
        **step,
    }
    headers = {VERSION_HEADER: session.version.version}
    return Response(as_json(content), status, headers, JSON)
