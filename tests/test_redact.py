from __future__ import annotations

import logging
import sys

import pytest

from ocp_mamba import redact as module
from ocp_mamba.errors import TrackingError, first_line
from ocp_mamba.redact import redact, redact_all, redact_console, remember


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_remembered", set())
    for name in (*module.SECRET_VARIABLES, *module.ADDRESS_VARIABLES):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter22@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql+psycopg://me:h/u@n:t@host/db", "postgresql+psycopg://me:***@host/db"),
        ("store http://me:x@h:1/ down", "store http://me:***@h:1/ down"),
        ("'http://:x@h' and \"s3://a:b@c\"", "'http://:***@h' and \"s3://a:***@c\""),
        ("https://ghp_0123@host/x", "https://***@host/x"),
        ("http://h/x?token=abc&run=7#top", "http://h/x?token=***&run=7#top"),
        ("https://h?a=1&X-Amz-Signature=f00", "https://h?a=1&X-Amz-Signature=***"),
        (
            "http://h?api_key=a&b=1&accessToken=c&pwd=d",
            "http://h?api_key=***&b=1&accessToken=***&pwd=***",
        ),
        ("postgresql:///db?user=me&password=x", "postgresql:///db?user=me&password=***"),
        ("host=h user=me password='a b' dbname=x", "host=h user=me password=*** dbname=x"),
        ("{'Authorization': 'Bearer abc.def'}", "{'Authorization': 'Bearer ***'}"),
        ("authorization: Basic YWxpY2U6aHVudGVy", "authorization: Basic ***"),
    ],
)
def test_secrets_in_texts(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert redact(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/mlflow.db",
        "postgresql://me@host/db",
        "models:/ocp-mamba-lvm@candidate",
        "http://127.0.0.1:5000/#/experiments/1/runs?compareRunsMode=CHART&workflowType=x",
        "GET /api/metrics?metric_key=val_loss&max_results=7&design=x&author=me",
        "mail me@host, the ratio 3:4 and a token of thanks",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact(text) == text


def test_known_secrets_are_found_where_they_stand_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "login failed for hunter22, p@ssword and s3cr3t-token, not for abc"
    assert redact(said) == said
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter22")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://u:p%40ssword@h")
    remember("http://h/?access_token=s3cr3t-token")
    remember("postgresql://u:abc@h/")
    assert redact(said) == "login failed for ***, *** and ***, not for abc"


def test_values_of_json_are_redacted_and_an_errors_first_line() -> None:
    value = {"a": ["http://u:p@h", 1, None], "http://u:p@h": {"b": 0.5}}
    assert redact_all(value) == {"a": ["http://u:***@h", 1, None], "http://u:***@h": {"b": 0.5}}
    error = TrackingError("x" * 290 + " http://user:hunter22@host/ is down\nhttp://u:p@h")
    assert "hunter" not in first_line(error)


def test_logs_and_tracebacks(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    factory = logging.getLogRecordFactory()
    try:
        redact_console()
        redact_console()
        try:
            raise ValueError("http://u:hunter22@h")
        except ValueError as error:
            logging.getLogger("other").exception("no %s", "postgresql://u:hunter22@h")
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        logging.setLogRecordFactory(factory)
    assert "no postgresql://u:***@h" in caplog.text
    assert "ValueError: http://u:***@h" in caplog.text
    shown = capsys.readouterr().err
    assert shown.endswith("ValueError: http://u:***@h\n")
    assert "hunter22" not in caplog.text + shown
