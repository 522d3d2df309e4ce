"""MLflow's scoring protocol: ``/invocations``, ``/ping``, ``/health`` and ``/version``.

MLflow's own code reads and answers the requests, so that its clients work unchanged. Before it
stand the checks that it lacks, and its messages lose what they repeat of the request.
"""

from __future__ import annotations

import asyncio
import re
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, INVALID_PARAMETER_VALUE, RESOURCE_EXHAUSTED
from mlflow.pyfunc import PyFuncModel, scoring_server
from mlflow.pyfunc.model import PythonModelContext
from mlflow.version import VERSION

from ocp_mamba.errors import RequestError
from ocp_mamba.service.guard import VERSION_HEADER, read_body
from ocp_mamba.service.reading import parse_json
from ocp_mamba.service.routes.predict import REFUSALS, content_type
from ocp_mamba.service.schemas import JSON, ScoringError
from ocp_mamba.service.state import Service
from ocp_mamba.service.version import Version
from ocp_mamba.serving.pyfunc import ServedLVM

THREADS = 32
"""Requests that MLflow's code reads at once; the model computes one after the other."""

CONCEPTS, CODES = "concepts", "codes"
"""Columns of a request in words; the second one only of a model with TMD."""

MAX_CELLS = 10_000_000
"""Numbers of a Parquet body, which may unpack to far more than its size."""

NO_CONTEXT = PythonModelContext({}, {})


def routes(service: Service) -> APIRouter:
    """Return the routes around a service."""
    router = APIRouter(tags=["MLflow"])
    pool = ThreadPoolExecutor(THREADS, "scoring")

    @router.get("/ping", response_class=Response, summary="Answers while the service runs")
    @router.get("/health", response_class=Response, summary="Answers while the service runs")
    async def ping() -> Response:
        """A line break."""
        return Response("\n", 200, media_type=JSON)

    @router.get("/version", response_class=Response, summary="The version of MLflow")
    async def version() -> Response:
        """As MLflow's server answers."""
        return Response(VERSION, 200, media_type=JSON)

    @router.post(
        "/invocations",
        response_model=None,
        responses={
            200: {"description": 'JSON: {"predictions": …}'},
            **{status: told | {"model": ScoringError} for status, told in REFUSALS.items()},
        },
        openapi_extra={
            "requestBody": {"content": {JSON: {"schema": {"type": "object"}}}, "required": True}
        },
        summary="Predict, in MLflow's protocol",
    )
    async def invocations(request: Request) -> Response:
        """The body is what the model's signature says; docs/mlflow.md has examples."""
        kind = content_type(request)
        body: Any = await read_body(request, service.settings)
        serving = service.serving
        assert serving.meta is not None
        if kind == JSON:
            body = parse_json(body)
            _check_json(body, serving)
        elif kind == scoring_server.CONTENT_TYPE_PARQUET:
            _check_parquet(body)
        loop = asyncio.get_running_loop()
        model = PyFuncModel(serving.meta, _OnModelThread(service, serving, loop))
        try:
            result = await loop.run_in_executor(
                pool,
                scoring_server.invocations,
                body,
                request.headers.get("content-type", "none"),
                model,
                serving.meta.get_input_schema(),
            )
        except MlflowException as error:
            status = error.get_http_status_code()
            retry = 1 if status == 429 else None
            raise RequestError(_told(error), status, retry) from None
        except Exception as error:  # MLflow's parsers let others through, each due to the body
            raise RequestError(
                f"the body cannot be read as {kind[:60]}: {type(error).__name__}"
            ) from None
        if result.status != 200:
            raise RequestError(result.response, result.status)
        headers = {VERSION_HEADER: serving.version}
        return Response(result.response, 200, headers, result.mimetype)

    return router


class _OnModelThread:
    """What MLflow's code calls: computes on the model's thread, and names errors as MLflow does."""

    def __init__(self, service: Service, version: Version, loop: asyncio.AbstractEventLoop) -> None:
        self._service, self._version, self._loop = service, version, loop
        self._served = ServedLVM()
        self._served.model = version.model

    def predict(self, model_input: Any, params: dict[str, Any] | None = None) -> Any:
        """Return ``(B, 768)`` predictions, from a thread that is not the event loop's."""
        call = self._service.batcher.call(lambda: self._answer(model_input, params))
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except RequestError as error:
            full = error.status in (429, 503)
            code = RESOURCE_EXHAUSTED if full else INVALID_PARAMETER_VALUE
            raise MlflowException(str(error), code) from error
        except Exception as error:
            raise MlflowException(
                "the service failed on this request; its log has the reason", INTERNAL_ERROR
            ) from error

    def _answer(self, model_input: Any, params: dict[str, Any] | None) -> Any:
        if CONCEPTS in getattr(model_input, "columns", ()):
            return self._in_words(model_input, params or {})
        try:
            return self._served.predict(NO_CONTEXT, model_input, params)
        except MlflowException as error:
            raise RequestError(str(error.message)) from error

    def _in_words(self, rows: Any, params: dict[str, Any]) -> Any:
        """The answer of a version whose signature takes texts; ``rows`` is a pandas DataFrame."""
        codes = rows[CODES].tolist() if CODES in rows.columns else None
        return self._version.words.predict(rows[CONCEPTS].tolist(), codes=codes, **params)


def _check_json(body: Any, serving: Version) -> None:
    """Refuse what MLflow answers with 200, or by repeating it.

    Raises:
        RequestError: the body has none of MLflow's forms, or its ``params`` an unknown name.
    """
    forms = sorted(scoring_server.SUPPORTED_FORMATS)
    if not isinstance(body, dict) or len(set(body) & set(forms)) != 1:
        raise RequestError(
            f"a JSON object with exactly one of the input fields {', '.join(forms)} is wanted"
        )
    params = body.get(scoring_server.SERVING_PARAMS_KEY)
    if params is None:
        return
    if not isinstance(params, dict):
        raise RequestError("params is no JSON object; names with their values are wanted")
    assert serving.meta is not None
    schema = serving.meta.get_params_schema()
    known = [spec.name for spec in schema.params] if schema else []
    for name in params:
        if name not in known:
            raise RequestError(
                f"params has the unknown name {str(name)[:60]!r}; this model knows "
                f"{', '.join(known) or 'none'}"
            )


def _check_parquet(body: bytes) -> None:
    """Refuse a Parquet file that cannot be read, or that says it holds too much.

    Raises:
        RequestError: it is such a file.
    """
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_metadata(BytesIO(body))
    except Exception as error:  # damaged files make it raise anything
        raise RequestError(f"the body is no Parquet file: {type(error).__name__}") from None
    if found.num_rows * found.num_columns > MAX_CELLS:
        raise RequestError(
            f"the Parquet file has {found.num_rows:,} rows of {found.num_columns:,} columns, at "
            f"most {MAX_CELLS:,} values are taken",
            413,
        )


def _told(error: MlflowException) -> str:
    """MLflow's message without the request that it repeats: what follows the last 'Error:'."""
    message = str(error.message).split("Input: ")[0]
    for mark in ("\nError: ", "Error: "):
        if mark in message:
            message = message.rsplit(mark, 1)[1]
    message = re.sub(r"`[^`]{60,}`", "`…`", " ".join(message.split()))
    return message[:600] or str(error.error_code)
