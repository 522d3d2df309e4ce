"""Bad input gets a clear 4xx of under 1 kB."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from bad_requests import Answer, Bad, table, wrong_answer
from fastapi.testclient import TestClient
from services import client_of, write_model


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(write_model(tmp_path_factory.mktemp("model"))) as running:
        yield running


@pytest.mark.parametrize("bad", table(), ids=lambda bad: bad.name)
def test_bad_input_is_refused(client: TestClient, bad: Bad) -> None:
    got = client.request(bad.method, bad.path, content=bad.make(), headers=bad.headers)
    wrong = wrong_answer(bad, Answer(got.status_code, dict(got.headers), got.content))
    assert wrong is None, wrong
