"""``/v1/predict`` and ``/v1/concepts``."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from ocp_mamba.errors import RequestError
from ocp_mamba.service.guard import VERSION_HEADER, read_body
from ocp_mamba.service.reading import body_of, chains_of, npy_array
from ocp_mamba.service.schemas import (
    JSON,
    NPY,
    ConceptsAnswer,
    ErrorAnswer,
    PredictAnswer,
    PredictBody,
    PredictQuery,
    as_json,
    as_npy,
    predict_json,
)
from ocp_mamba.service.state import Service

LONGEST_QUERY = 1_000
"""Concepts that a lookup lists at most, and characters that it looks for."""

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "What was sent is not what is wanted."},
    401: {"model": ErrorAnswer, "description": "The token is missing or wrong."},
    408: {"model": ErrorAnswer, "description": "The body did not arrive in time."},
    413: {"model": ErrorAnswer, "description": "Too much at once."},
    415: {"model": ErrorAnswer, "description": "The content type is another one."},
    429: {"model": ErrorAnswer, "description": "Too many wait; Retry-After says how long to."},
}


class LookupQuery(BaseModel):
    """What a person typed, and how many concepts to list."""

    model_config = ConfigDict(extra="forbid")
    q: str = Field(min_length=1, max_length=200, description="What to look for.")
    limit: int = Field(10, ge=1, le=100, description="Concepts to list.")


def body_schema(
    kind: type[BaseModel], *, npy: bool = False, required: bool = True
) -> dict[str, Any]:
    """Return the part of OpenAPI that describes a body which the route itself reads."""
    content: dict[str, Any] = {JSON: {"schema": kind.model_json_schema()}}
    if npy:
        content[NPY] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"content": content, "required": required}}


def content_type(request: Request) -> str:
    """Return a request's content type without its parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def require_json(request: Request) -> None:
    """Refuse a body of another kind.

    Raises:
        RequestError: it is (415).
    """
    if (found := content_type(request)) != JSON:
        raise RequestError(f"Content-Type: {JSON} is wanted, {found[:60] or 'none'} found", 415)


def routes(service: Service) -> APIRouter:
    """Return the routes around a service."""
    router = APIRouter(prefix="/v1", tags=["predict"])

    @router.post(
        "/predict",
        response_model=None,
        responses={
            200: {"model": PredictAnswer, "content": {NPY: {"schema": {"type": "string"}}}},
            **REFUSALS,
        },
        openapi_extra=body_schema(PredictBody, npy=True),
        summary="Predict what follows chains of concepts or of vectors",
    )
    async def predict(request: Request, query: Annotated[PredictQuery, Query()]) -> Response:
        """Chains of texts, or their vectors; as JSON, or vectors alone as application/x-npy.

        With application/x-npy the options stand in the query. An `Accept: application/x-npy` gets
        the predicted vectors as float32 (B, steps, 768).
        """
        body = await _predict_body(service, request, query)
        version = service.serving
        if body.concepts is not None and version.text is not None and version.text.encoder:
            read = service.batcher.call(lambda: chains_of(version, body, service.settings))
            chains, names = await read
        else:
            chains, names = chains_of(version, body, service.settings)
        as_array = NPY in request.headers.get("accept", "")
        top_k = 0 if as_array else body.top_k
        predicted = await service.batcher.predict(version, chains, body.steps, top_k)
        headers = {VERSION_HEADER: predicted.version.version}
        if as_array:
            return Response(as_npy(predicted.vectors), 200, headers, NPY)
        return Response(predict_json(predicted, names, body.return_vectors), 200, headers, JSON)

    @router.get(
        "/concepts",
        response_model=None,
        responses={200: {"model": ConceptsAnswer}, 400: REFUSALS[400], 401: REFUSALS[401]},
        summary="Look up known concepts by what a person types",
    )
    async def concepts(query: Annotated[LookupQuery, Query()]) -> Response:
        """Concepts that begin with the query, then those that hold it, then similar ones."""
        version = service.serving
        vocabulary = version.words.vocabulary
        found = await asyncio.to_thread(vocabulary.search, query.q, query.limit)
        headers = {VERSION_HEADER: version.version}
        content = as_json({"model": version.identity, "concepts": found})
        return Response(content, 200, headers, JSON)

    return router


async def _predict_body(service: Service, request: Request, query: PredictQuery) -> PredictBody:
    """The request of a body of either content type.

    Raises:
        RequestError: it is of another one, or not what is wanted.
    """
    kind = content_type(request)
    if kind == NPY:
        vectors = npy_array(await read_body(request, service.settings))
        lengths = [int(n) for n in query.lengths.split(",")] if query.lengths else None
        return PredictBody.model_construct(
            vectors=vectors, lengths=lengths, top_k=query.top_k, steps=query.steps,
            return_vectors=query.return_vectors,
        )  # fmt: skip
    if kind != JSON:
        raise RequestError(
            f"Content-Type: {JSON} or {NPY} is wanted, {kind[:60] or 'none'} found", 415
        )
    if request.scope["query_string"]:
        raise RequestError("with a JSON body the options stand in the body, not in the query")
    return body_of(PredictBody, await read_body(request, service.settings))
