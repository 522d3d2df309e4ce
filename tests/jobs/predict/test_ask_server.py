"""`ocp-mamba ask --server` against real HTTP servers, good ones and bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from command import run
from servers import free_port

from ocp_mamba.jobs.predict.ask_server import ask_server

ANSWER = {
    "model": {"name": "ocp-mamba-lvm", "version": "7"},
    "predictions": [
        {
            "concepts": ["shark", "fish"],
            "steps": [{"next": [{"concept": "vertebrate", "score": 0.75}]}],
        }
    ],
}


class Handler(BaseHTTPRequestHandler):
    """Answers with the server's ``answer``, and keeps what was asked."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), json.loads(body)))
        status, content = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Any]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.asked, http.answer = [], (200, json.dumps(ANSWER).encode())
    http.url = f"http://127.0.0.1:{http.server_port}"
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http
    http.shutdown()
    thread.join()
    http.server_close()


def test_a_server_is_asked_as_its_page_says(server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCP_MAMBA_SERVE_TOKEN", "secret")
    said = run("ask", "shark", "fish", "--server", f"{server.url}/", "--top-k", 3, "--steps", 2)
    [(path, headers, body)] = server.asked
    assert path == "/v1/predict"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {"concepts": [["shark", "fish"]], "top_k": 3, "steps": 2}
    assert said.startswith("ocp-mamba-lvm version 7\n\nshark → fish → ?\n")
    assert "vertebrate" in said
    assert "0.750" in said
    assert json.loads(run("ask", "shark", "fish", "--server", server.url, "--json")) == ANSWER


@pytest.mark.parametrize(
    ("status", "content", "message"),
    [
        (400, b'{"detail": "unknown text: sharkk"}', "answers 400: unknown text: sharkk"),
        (400, b'{"message": "an older form"}', "answers 400: an older form"),
        (502, b"<html>\nbad gateway", "answers 502: <html>"),
        (503, b"", "answers 503: Service Unavailable"),
        (400, b"[1]", "answers 400: [1]"),
        (200, b"hello", "is no prediction (b'hello')"),
        (200, b'{"predictions": []}', "is no prediction"),
        (200, json.dumps(ANSWER | {"predictions": [{"steps": 5}]}).encode(), "is no prediction"),
    ],
)
def test_a_refusal_or_another_server_is_one_clear_line(
    server: Any, status: int, content: bytes, message: str
) -> None:
    server.answer = (status, content)
    said = run("ask", "shark", "--server", server.url, code=2)
    assert message in said
    assert "Traceback" not in said


def test_no_server_is_one_clear_line() -> None:
    said = run("ask", "shark", "--server", f"http://127.0.0.1:{free_port()}", code=2)
    assert "no answer" in said
    assert "ocp-mamba serve" in said
    assert "begins with http://" in run("ask", "shark", "--server", "localhost:80", code=2)


@pytest.mark.parametrize("option", ["--model", "--data", "--encoder"])
def test_what_belongs_to_a_local_model_does_not_go_with_a_server(option: str) -> None:
    said = run("ask", "shark", "--server", "http://127.0.0.1:1", option, "x", code=2)
    assert f"{option} does not go with --server" in said


def test_asking_a_server_loads_nothing_heavy() -> None:
    code = (
        "import sys, ocp_mamba.jobs.predict.ask_server, ocp_mamba.cli.ask; "
        "print(*{'torch', 'mlflow', 'numpy', 'faiss'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
    assert callable(ask_server)
