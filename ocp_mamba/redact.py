"""Passwords and tokens in texts: `redact` replaces them, wherever a text is shown or written.

An address may hold a password (``postgresql://user:password@host``, ``http://…?token=…``), and so
may the message of a library that could not reach it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from types import TracebackType
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

SECRET_VARIABLES = (
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_AUTH_ADMIN_PASSWORD",
    "PGPASSWORD",
    "DATABRICKS_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
)
ADDRESS_VARIABLES = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "OCP_MAMBA_SWEEP_STORAGE")

SHORTEST = 6
"""Characters of the shortest secret that is replaced wherever it stands. A shorter one is found
only where it stands in an address, because it may well be a part of an ordinary word."""

_USER_AND_PASSWORD = re.compile(r"([A-Za-z][\w+.-]*://)([^\s:/@'\"]*):[^\s'\"]*@")
_TOKEN_AS_USER = re.compile(r"(https?://)[^\s:/@'\"?#]+@")
_PASSWORD = re.compile(r"[A-Za-z][\w+.-]*://[^\s:/@'\"]*:([^\s'\"]*)@")
_NAME = (
    r"(?:[\w.-]*[_.-])?(?:(?:ssl)?pass(?:word|wd|phrase)?|pwd|(?:[a-z]*[_-]?)token|secret|"
    r"(?:api|access|account|secret|private|shared)[_-]?key|sig(?:nature)?|credentials?|"
    r"auth(?:orization)?)"
)
_QUERY = re.compile(rf"([?&;]{_NAME}=)[^&;\s'\"#]+", re.I)
_KEYWORD = re.compile(
    r"\b((?:ssl)?password|passwd|pwd)(\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&'\";,)]+)", re.I
)
_HEADER = re.compile(r"(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)\s+)[^\s'\"]+", re.I)

_remembered: set[str] = set()


def remember(address: str) -> None:
    """Let `redact` replace the password and the tokens of this address wherever they stand."""
    _remembered.update(_secrets_in(address))


def redact(text: str) -> str:
    """Return a text with ``***`` in place of each password and token in it.

    Found are: passwords in addresses, tokens in their queries, ``password=…`` as PostgreSQL's
    library writes it, headers that log in, the values of `SECRET_VARIABLES`, and the passwords of
    the addresses that this process uses, also where they stand alone.
    """
    for secret in sorted(_known(), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    text = _USER_AND_PASSWORD.sub(rf"\1\2:{HIDDEN}@", text)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}@", text)
    text = _QUERY.sub(rf"\1{HIDDEN}", text)
    text = _KEYWORD.sub(rf"\1\2{HIDDEN}", text)
    return _HEADER.sub(rf"\1{HIDDEN}", text)


def redact_all(value: Any) -> Any:
    """Return a JSON value with every text in it redacted, keys of objects included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {redact_all(key): redact_all(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [redact_all(held) for held in value]
    return value


def redact_console() -> None:
    """Redact what this process logs from now on, and the traceback of an error that ends it."""
    made = logging.getLogRecordFactory()
    if getattr(made, "redacts", False):
        return

    def make(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = made(*args, **kwargs)
        record.msg, record.args = redact(record.getMessage()), None
        if record.exc_info:
            record.exc_text = redact("".join(traceback.format_exception(*record.exc_info)).rstrip())
        return record

    make.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make)
    sys.excepthook = _redacted_excepthook


def _redacted_excepthook(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    print(redact("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr)


def _known() -> set[str]:
    """The secrets of the environment and of remembered addresses that are long enough."""
    known = set(_remembered)
    for name in SECRET_VARIABLES:
        known.add(os.environ.get(name, ""))
    for name in ADDRESS_VARIABLES:
        known |= _secrets_in(os.environ.get(name, ""))
    return {secret for secret in known if len(secret) >= SHORTEST}


def _secrets_in(address: str) -> set[str]:
    """The passwords and tokens in an address, as they stand in it and unquoted."""
    found = {match.group(1) for match in _PASSWORD.finditer(address)}
    found |= {match.group(0).split("=", 1)[1] for match in _QUERY.finditer(address)}
    return found | {unquote(secret) for secret in found}
