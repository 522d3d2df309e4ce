"""Asking a running `ocp-mamba serve` in words. It imports nothing heavy, so that it is quick."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

from ocp_mamba.errors import LONGEST_LINE, ServerError, first_line

PATH = "/v1/predict"
TIMEOUT_S = 60.0
SCHEMES = ("http://", "https://")


def ask_server(
    url: str,
    concepts: Sequence[str],
    *,
    top_k: int,
    steps: int,
    codes: Sequence[int] | None = None,
    token: str | None = None,
    timeout_s: float = TIMEOUT_S,
) -> dict[str, Any]:
    """Return a server's answer about one chain: ``{"model": …, "predictions": [one]}``.

    Args:
        url: of the server, such as ``http://127.0.0.1:5001``.
        concepts: the chain's texts.
        top_k: next concepts of each step.
        steps: steps of the rollout.
        codes: domain, task and modifier, for a model that takes TMD codes.
        token: bearer token that the server wants.
        timeout_s: how long to wait for the answer.

    Raises:
        ServerError: the server refuses, with its reason; does not answer; or answers something
            else.
    """
    if not url.startswith(SCHEMES):
        raise ServerError(f"server {url}: an address that begins with {SCHEMES[0]} is wanted")
    body: dict[str, Any] = {"concepts": [list(concepts)], "top_k": top_k, "steps": steps}
    if codes is not None:
        body["codes"] = [list(codes)]
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    address = url.rstrip("/") + PATH
    request = urllib.request.Request(address, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            return _checked(address, answer.read())
    except urllib.error.HTTPError as error:
        raise ServerError(f"{address} answers {error.code}: {_reason(error)}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = first_line(getattr(error, "reason", None) or error)
        raise ServerError(f"{address}: no answer ({reason}); start one: ocp-mamba serve") from error


def _checked(address: str, content: bytes) -> dict[str, Any]:
    """The answer, once it has the parts that are printed."""
    try:
        answer = json.loads(content)
        model, [prediction] = answer["model"], answer["predictions"]
        str(model["name"]), str(model["version"])
        for step in prediction["steps"]:
            [(str(found["concept"]), float(found["score"])) for found in step["next"]]
        list(prediction["concepts"])
    except (ValueError, KeyError, TypeError) as error:
        raise ServerError(
            f"{address}: answers something that is no prediction ({content[:80]!r}); is it an "
            "ocp-mamba serve?"
        ) from error
    found: dict[str, Any] = answer
    return found


def _reason(error: urllib.error.HTTPError) -> str:
    """The message in the body of a refusal, or its first characters where it has another form."""
    content = error.read(100 * LONGEST_LINE).decode(errors="replace")
    try:
        body = json.loads(content)
        return str(body.get("detail") or body["message"])[: 3 * LONGEST_LINE]
    except (ValueError, KeyError, AttributeError, TypeError):
        return (content.strip() or str(error.reason)).splitlines()[0][:LONGEST_LINE]
