"""Sessions: a chain read concept by concept, each at the same cost, within limits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from services import client_of, write_model

from ocp_mamba.errors import RequestError
from ocp_mamba.service.sessions import Sessions
from ocp_mamba.service.settings import ServiceSettings

WORDS = [f"concept é {i}" for i in range(30)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(write_model(tmp_path_factory.mktemp("model"))) as running:
        yield running


def begin(client: TestClient, **content: Any) -> dict[str, Any]:
    got = client.post("/v1/sessions", json=content)
    assert got.status_code == 201, got.text
    return got.json()


def step(client: TestClient, session: str, **content: Any) -> dict[str, Any]:
    got = client.post(f"/v1/sessions/{session}/step", json=content)
    assert got.status_code == 200, got.text
    return got.json()


def whole(client: TestClient, chain: list[str], **content: Any) -> list[dict[str, Any]]:
    """The steps that `/v1/predict` gives for a chain."""
    got = client.post("/v1/predict", json={"concepts": [chain], **content})
    steps: list[dict[str, Any]] = got.json()["predictions"][0]["steps"]
    return steps


def same(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    assert [n["concept"] for n in found] == [n["concept"] for n in wanted]
    np.testing.assert_allclose([n["score"] for n in found], [n["score"] for n in wanted], atol=1e-5)


def test_each_step_answers_as_the_whole_chain_does(client: TestClient) -> None:
    answer = begin(client, concepts=WORDS[:2])
    assert answer["position"] == 2
    same(answer["next"], whole(client, WORDS[:2])[0]["next"])
    bank = client.service.serving.words.bank
    for i in range(2, 12):
        given = {"concept": WORDS[i]} if i % 2 else {"vector": (7 * bank[i]).tolist()}
        answer = step(client, answer["session"], **given)
        assert answer["position"] == i + 1
        same(answer["next"], whole(client, WORDS[: i + 1])[0]["next"])


def test_an_empty_session_begins_with_its_first_step(client: TestClient) -> None:
    answer = begin(client)
    assert (answer["position"], answer["next"]) == (0, [])
    got = client.get(f"/v1/sessions/{answer['session']}/rollout")
    assert got.status_code == 400
    assert "empty" in got.json()["detail"]
    first = step(client, answer["session"], concept=WORDS[5])
    same(first["next"], whole(client, WORDS[5:6])[0]["next"])


def test_a_rollout_streams_what_predict_answers_and_changes_nothing(client: TestClient) -> None:
    session = begin(client, concepts=WORDS[:3])["session"]
    for _ in range(2):  # the second finds the session as the first did
        got = client.get(f"/v1/sessions/{session}/rollout?steps=6&top_k=2&return_vectors=true")
        assert got.headers["content-type"].startswith("text/event-stream")
        events = [event.split("\n") for event in got.text.strip().split("\n\n")]
        assert [name for name, _ in events] == ["event: step"] * 6 + ["event: end"]
        wanted = whole(client, WORDS[:3], steps=6, top_k=2, return_vectors=True)
        for number, ((_, data), other) in enumerate(zip(events[:-1], wanted, strict=True), 1):
            found = json.loads(data.removeprefix("data: "))
            assert found["step"] == number
            same(found["next"], other["next"])
            np.testing.assert_allclose(found["vector"], other["vector"], atol=1e-5)
    assert client.get(f"/v1/sessions/{session}").json()["position"] == 3


def test_a_long_session_costs_no_more_memory(client: TestClient) -> None:
    session = begin(client, concepts=WORDS[:1])["session"]
    before = client.service.sessions.nbytes
    found = client.service.sessions.get(session)
    model, cache = found.version.model, found.cache
    rows = torch.from_numpy(found.version.words.bank)
    for i in range(9_999):  # as the route does, without HTTP
        model.step(rows[i % 30][None], None, cache)
    found.position += 9_999
    answer = step(client, session, concept=WORDS[0])
    assert answer["position"] == 10_001
    assert len(answer["next"]) == 5
    assert client.service.sessions.nbytes == before


def test_an_ended_session_says_so(client: TestClient) -> None:
    session = begin(client)["session"]
    assert client.delete(f"/v1/sessions/{session}").status_code == 204
    for method, path in (("GET", ""), ("POST", "/step"), ("GET", "/rollout"), ("DELETE", "")):
        content = {"concept": WORDS[0]} if method == "POST" else None
        got = client.request(method, f"/v1/sessions/{session}{path}", json=content)
        assert got.status_code == 410
        assert "it was deleted" in got.json()["detail"]


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def limited(client: TestClient, **settings: Any) -> tuple[Sessions, Clock, Any]:
    clock = Clock()
    return Sessions(ServiceSettings(**settings), clock), clock, client.service.serving


def refused(sessions: Sessions, name: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        sessions.get(name)
    return caught.value


def test_sessions_end_by_their_age(client: TestClient) -> None:
    sessions, clock, version = limited(client, session_idle=10, session_age=25)
    unused, used = sessions.open(version, None).id, sessions.open(version, None).id
    for clock.seconds in (8.0, 16.0, 24.0):
        sessions.get(used)
    error = refused(sessions, unused)
    assert (error.status, "not used for 10 s" in str(error)) == (410, True)
    clock.seconds = 25.0
    error = refused(sessions, used)
    assert (error.status, "25 s old" in str(error)) == (410, True)
    assert refused(sessions, "never").status == 404
    assert len(sessions) == 0


@pytest.mark.parametrize("limit", ["max_sessions", "session_bytes"])
def test_too_many_sessions_are_refused_until_one_ends(client: TestClient, limit: str) -> None:
    one = client.service.serving.model.allocate_inference_cache(1)
    size = sum(tensor.nbytes for tensor in one.tensors())
    settings = {"max_sessions": 3} if limit == "max_sessions" else {"session_bytes": 3 * size}
    sessions, clock, version = limited(client, session_idle=10, **settings)
    first, *_ = (sessions.open(version, None) for _ in range(3))
    clock.seconds = 4.0
    with pytest.raises(RequestError, match="DELETE one") as caught:
        sessions.open(version, None)
    assert (caught.value.status, caught.value.retry_after) == (429, 6)
    sessions.end(first.id)
    sessions.open(version, None)
