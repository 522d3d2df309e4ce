"""Requests made from our own OpenAPI document, good and bad ones: no answer is a 5xx."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import response_schema_conformance
from services import Running, write_model

QUICK = settings(
    max_examples=2, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
LONG = settings(QUICK, max_examples=200)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with Running(write_model(tmp_path_factory.mktemp("model"))) as running:
        yield schemathesis.openapi.from_url(f"{running.url}/openapi.json")


def wrong(api: Any, limits: settings) -> list[str]:
    """What is wrong with the answers to requests made from the document, an operation a line."""
    found, operations = [], list(api.get_all_operations())
    assert len(operations) > 10
    for operation in (result.ok() for result in operations):
        for mode in GenerationMode:

            @limits
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                answer = case.call()
                assert answer.status_code < 500, answer.text[:300]
                if answer.status_code >= 400:
                    assert len(answer.content) < 1000, answer.text[:1000]
                case.validate_response(answer, checks=[response_schema_conformance])

            try:
                check()
            except Unsatisfiable:
                pass  # an operation without parameters has no bad requests
            except (Exception, BaseExceptionGroup) as error:
                found.append(f"{operation.label}, {mode.value}: {error}")
    return found


def test_no_answer_is_a_5xx(api: Any) -> None:
    assert wrong(api, QUICK) == []


@pytest.mark.slow
def test_no_answer_is_a_5xx_in_many_examples(api: Any) -> None:
    assert wrong(api, LONG) == []
