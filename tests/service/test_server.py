"""The service over real HTTP: strangers, slow clients, a full queue, and the end."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from bad_requests import wrong_answers
from command import run
from services import LIMIT_S, Running, client_of, write_model

from ocp_mamba.errors import ConfigError
from ocp_mamba.service.settings import ServiceSettings
from ocp_mamba.service.source import FileSource
from ocp_mamba.service.version import Version

ASKED = json.dumps({"concepts": [["concept é 1"]]}).encode()
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> FileSource:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def running(source: FileSource) -> Iterator[Running]:
    with Running(source, head_seconds=0.3, body_seconds=0.3) as found:
        yield found


def test_what_is_too_large_is_refused_and_the_connection_stays_usable(running: Running) -> None:
    connection = http.client.HTTPConnection(*running.address, timeout=LIMIT_S)
    for body in (b" " * 60_000_000, ASKED):
        connection.request("POST", "/v1/predict", body, JSON)
        got = connection.getresponse()
        content = got.read()
        assert got.status == (413 if body is not ASKED else 200)
        assert len(content) < 1000
    connection.close()


def test_a_body_without_a_length_is_counted(running: Running) -> None:
    connection = http.client.HTTPConnection(*running.address, timeout=LIMIT_S)
    parts = (b" " * 1_000_000 for _ in range(20))
    connection.request("POST", "/v1/predict", parts, JSON, encode_chunked=True)
    got = connection.getresponse()
    assert got.status == 413
    assert "more than 16,777,216 bytes" in json.loads(got.read())["detail"]
    connection.close()


def left_open(running: Running, sent: bytes) -> bytes:
    """What comes back until the service closes a connection on which nothing more is sent."""
    with socket.create_connection(running.address, timeout=LIMIT_S) as s:
        s.sendall(sent)
        answer = b""
        with suppress(ConnectionResetError):  # what it had not read when it closed
            while part := s.recv(65536):
                answer += part
        return answer


def test_slow_clients_are_let_go(running: Running) -> None:
    for sent in (b"", b"POST /v1/pre", b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"):
        assert left_open(running, sent) == b""
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = left_open(running, head + b"Content-Length: 100\r\n\r\n{")
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"did not arrive within 0.3 s: 1 bytes found" in answer


def test_what_is_no_http_is_refused(running: Running) -> None:
    endless = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"Name: value\r\n" * 10_000
    for sent in (b"\x16\x03\x01" * 100 + b"\r\n\r\n", b"a" * 100_000, endless):
        assert b" 400 " in left_open(running, sent).split(b"\r\n")[0]


def test_strangers_names_are_refused_on_loopback(running: Running) -> None:
    for host, status in (
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost", 200),
    ):
        got = running.send("GET", "/ready", b"", {"Host": f"{host}:5001"})
        assert got.status == status


def test_a_token_is_wanted_where_one_is_set(source: FileSource) -> None:
    with client_of(source, token="s3cret") as client:
        for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            got = client.post("/v1/predict", content=ASKED, headers=JSON | given)
            assert got.status_code == 401
            assert got.headers["www-authenticate"] == "Bearer"
            assert client.get("/metrics", headers=given).status_code == 401
        right = {"Authorization": "Bearer s3cret"}
        assert client.post("/v1/predict", content=ASKED, headers=JSON | right).status_code == 200
        for path in ("/", "/docs", "/ping", "/health", "/ready"):
            assert client.get(path, headers={"Host": "any.example"}).status_code == 200
    with pytest.raises(ConfigError, match="token is empty"):
        ServiceSettings(token=" ")


class Held:
    """Lets a version's predictions wait until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, self.reached = threading.Event(), threading.Event()
        whole = Version.predict

        def predict(version: Version, *given: Any) -> Any:
            self.reached.set()
            assert self.gate.wait(LIMIT_S)
            return whole(version, *given)

        monkeypatch.setattr(Version, "predict", predict)


def test_a_full_queue_answers_429(source: FileSource, monkeypatch: pytest.MonkeyPatch) -> None:
    with Running(source, max_queue=2, max_batch=1) as running, ThreadPoolExecutor(8) as pool:
        held = Held(monkeypatch)
        first = pool.submit(running.send, "POST", "/v1/predict", ASKED, JSON)
        assert held.reached.wait(LIMIT_S)
        others = [pool.submit(running.send, "POST", "/v1/predict", ASKED, JSON) for _ in range(5)]
        deadline = time.monotonic() + LIMIT_S
        while sum(other.done() for other in others) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        vectors = json.dumps({"inputs": [[[1.0] * 768]]}).encode()
        assert running.send("POST", "/invocations", vectors, JSON).status == 429
        held.gate.set()
        answers = [first.result(), *(other.result() for other in others)]
        assert sorted(a.status for a in answers) == [200, 200, 200, 429, 429, 429]
        for answer in answers:
            if answer.status == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert "2 chains wait already" in json.loads(answer.body)["detail"]


def test_stopping_answers_what_was_taken(
    source: FileSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = Running(source, max_batch=1)
    with running, ThreadPoolExecutor(8) as pool:
        held = Held(monkeypatch)
        taken = [pool.submit(running.send, "POST", "/v1/predict", ASKED, JSON) for _ in range(4)]
        deadline = time.monotonic() + LIMIT_S
        while running.service.batcher.waiting < 3:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        running.server.should_exit = True
        while True:  # until no new connection is taken
            try:
                socket.create_connection(running.address, timeout=1).close()
            except OSError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.02)
        held.gate.set()
        assert [t.result().status for t in taken] == [200] * 4


@pytest.mark.slow
def test_bad_requests_over_http(source: FileSource) -> None:
    with Running(source) as running:
        assert wrong_answers(running.send) == []


def test_a_port_in_use_is_an_error_in_one_line(source: FileSource) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("serve", source.path, "--port", port, code=2)
    assert f"port {port} of 127.0.0.1 cannot be used: Address already in use" in said
    assert "Traceback" not in said
