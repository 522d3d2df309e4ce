"""Bad requests to a service of a plain model, each with the status that it deserves.

`wrong_answers` sends the whole table and says which answers break the promise: a 4xx of under 1 kB
that says what is wrong, never a 5xx, a traceback, a NaN or what was sent.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

JSON = {"Content-Type": "application/json"}
NPY = {"Content-Type": "application/x-npy"}
LARGE = 60_000_000
SECRET = "secret-canary"
"""Stands in the bad part of bodies; no answer may hold it in full length."""

PREDICT, INVOCATIONS, SESSIONS = "/v1/predict", "/invocations", "/v1/sessions"


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


Send = Callable[[str, str, bytes, dict[str, str]], Answer]
"""Called with method, path, body and headers."""


@dataclass(frozen=True)
class Bad:
    """One bad request; ``says`` stands in the answer, and ``make`` gives the body."""

    name: str
    make: Callable[[], bytes]
    path: str = PREDICT
    says: str = ""
    statuses: tuple[int, ...] = (400,)
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: JSON)


def good(B: int = 1, L: int = 2, width: int = 768) -> list[list[list[float]]]:
    return np.random.default_rng(0).standard_normal((B, L, width)).round(3).tolist()


def text(content: Any) -> Callable[[], bytes]:
    return lambda: json.dumps(content).encode()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def with_number(written: str) -> Callable[[str], bytes]:
    """A body of vectors under a key, one number of which is written so."""

    def body(key: str) -> bytes:
        vectors: list[Any] = good()
        vectors[0][1][2] = "HERE"
        return json.dumps({key: vectors}).replace('"HERE"', written).encode()

    return body


def zeros() -> list[list[list[float]]]:
    vectors = good()
    vectors[0][1] = [0.0] * 768
    return vectors


def ragged() -> list[list[list[float]]]:
    vectors = good(2, 2)
    vectors[1].pop()
    return vectors


def everywhere() -> Iterator[Bad]:
    """What no route that takes JSON can read."""
    deep = 100_000
    bodies: dict[str, tuple[Callable[[], bytes], str]] = {
        "nothing": (lambda: b"", "no JSON"),
        "half of an object": (lambda: b'{"vectors": [[[1.0, ', "no JSON"),
        "no UTF-8": (lambda: b'{"concepts": [["\xff\xfe"]]}', "no JSON"),
        "half a surrogate": (lambda: b'{"concepts": [["\\ud800"]]}', "no JSON"),
        "arrays 100,000 deep": (lambda: b"[" * deep + b"]" * deep, "depth"),
        "objects 100,000 deep": (lambda: b'{"vectors":' * deep + b"1" + b"}" * deep, "depth"),
        "vectors 5,000 deep": (lambda: b'{"inputs":' + b"[" * 5000 + b"]" * 5000 + b"}", "depth"),
        "an integer of 5,000 digits": (lambda: b'{"top_k": ' + b"7" * 5000 + b"}", "no JSON"),
        "NaN": (lambda: b'{"vectors": [[[NaN]]]}', "no JSON"),
        "an array": (text([1, 2]), "array"),
        "a text": (text(SECRET * 100), ""),
        "null": (text(None), ""),
        "a number": (text(1e300), ""),
        "a 60 MB body": (lambda: b'{"inputs": "' + SECRET.encode() * (LARGE // 13), "16,777,216"),
        "60 MB of nothing": (lambda: b" " * LARGE, "16,777,216"),
    }
    for path in (PREDICT, INVOCATIONS, SESSIONS, f"{SESSIONS}/none/step"):
        for name, (make, says) in bodies.items():
            if name == "a 60 MB body" and path not in (PREDICT, INVOCATIONS):
                continue
            if path == INVOCATIONS and name in ("a text", "null", "a number", "an array"):
                says = "JSON object"
            yield Bad(f"{path}: {name}", make, path, says, (413,) if "60 MB" in name else (400,))
        for kind in ("text/plain", "application/xml", "", "application/json/x", "a" * 3000):
            headers = {"Content-Type": kind} if kind else {}
            name = f"{path}: content type {kind[:20] or 'none'}"
            yield Bad(name, text({}), path, "", (415, 431), headers=headers)
    zipped = JSON | {"Content-Encoding": "gzip"}
    yield Bad("gzip", lambda: b"\x1f\x8b" * 9, PREDICT, "no JSON", headers=zipped)


def chains() -> Iterator[Bad]:
    """What ``/v1/predict`` refuses in a JSON object."""
    known = "concept é 1"
    for name, content, says in (
        ("nothing asked", {}, "neither"),
        ("both asked", {"concepts": [[known]], "vectors": good()}, "both"),
        ("no chain", {"concepts": []}, "empty"),
        ("an empty chain", {"concepts": [[]]}, "1 to"),
        ("a text as a chain", {"concepts": ["ormer"]}, "list of texts"),
        ("a number as a text", {"concepts": [[1]]}, "list of texts"),
        ("null as a text", {"concepts": [[None]]}, "list of texts"),
        ("an object as concepts", {"concepts": {"a": 1}}, "list of"),
        ("an unknown text", {"concepts": [["concept 1"]]}, "nearest: 'concept é 1'"),
        ("a long text", {"concepts": [[SECRET * 1000]]}, "characters"),
        ("white space", {"concepts": [["  \n"]]}, "white space"),
        ("NUL", {"concepts": [["a\x00b"]]}, "unknown text"),
        ("1,000 unknown texts", {"concepts": [[f"x{i}" for i in range(1000)]]}, "more"),
        ("a misspelt key", {"concepts": [[known]], "topk": 3}, "did you mean 'top_k'"),
        ("a long key", {SECRET * 1000: 1}, "unknown"),
        ("top_k as a text", {"concepts": [[known]], "top_k": "3"}, "top_k"),
        ("top_k as a fraction", {"concepts": [[known]], "top_k": 2.5}, "top_k"),
        ("top_k true", {"concepts": [[known]], "top_k": True}, "top_k"),
        ("top_k below 0", {"concepts": [[known]], "top_k": -1}, "top_k"),
        ("top_k huge", {"concepts": [[known]], "top_k": 10**18}, "top_k"),
        ("steps 0", {"concepts": [[known]], "steps": 0}, "steps"),
        ("steps huge", {"concepts": [[known]], "steps": 10**9}, "steps"),
        ("steps null", {"concepts": [[known]], "steps": None}, "steps"),
        ("return_vectors as a text", {"concepts": [[known]], "return_vectors": "yes"}, "return_"),
        ("lengths with concepts", {"concepts": [[known]], "lengths": [1]}, "lengths"),
        ("codes of a plain model", {"concepts": [[known]], "codes": [[1, 2, 3]]}, "TMD"),
        ("tmd of a plain model", {"vectors": good(), "tmd": [[0.5] * 16]}, "TMD"),
        ("tmd and codes", {"vectors": good(), "tmd": [[1.0] * 16], "codes": [[1, 2, 3]]}, "both"),
        ("vectors as a text", {"vectors": SECRET * 100}, "lists of numbers"),
        ("vectors of texts", {"vectors": [[["0.5"] * 768]]}, "numbers"),
        ("vectors of null", {"vectors": [[[None] * 768]]}, "numbers"),
        ("vectors of true", {"vectors": [[[True] * 768]]}, "numbers"),
        ("no vectors", {"vectors": []}, "shape"),
        ("L = 0", {"vectors": [[]]}, "shape"),
        ("vectors of nothing", {"vectors": [[[]]]}, "shape"),
        ("one vector alone", {"vectors": good()[0][0]}, "shape"),
        ("784 wide", {"vectors": good(width=784)}, "(1, 2, 784)"),
        ("ragged", {"vectors": ragged()}, "ragged"),
        ("zeros", {"vectors": zeros()}, "vectors[0][1] is all zeros"),
        ("lengths 0", {"vectors": good(), "lengths": [0]}, "from 1 to 2"),
        ("lengths too long", {"vectors": good(), "lengths": [3]}, "from 1 to 2"),
        ("lengths too many", {"vectors": good(), "lengths": [1, 1]}, "from 1 to 2"),
        ("lengths as fractions", {"vectors": good(), "lengths": [1.5]}, "lengths"),
        ("lengths huge", {"vectors": good(), "lengths": [2**63]}, "lengths"),
    ):
        says = "the same" if name == "tmd and codes" else says
        yield Bad(name, text(content), says=says)
    many, long = text({"concepts": [[known]] * 2000}), text({"concepts": [[known] * 9000]})
    yield Bad("2,000 chains", many, says="2,000", statuses=(413,))
    yield Bad("a chain of 9,000", long, says="9,000", statuses=(413,))
    yield Bad("1e999", lambda: with_number("1e999")("vectors"), says="no JSON")
    yield Bad("options in the query", text({"concepts": [[known]]}), f"{PREDICT}?top_k=2", "body")


def arrays() -> Iterator[Bad]:
    """What ``/v1/predict`` refuses as application/x-npy."""
    vectors = np.array(good(), dtype=np.float32)
    nan, inf = vectors.copy(), vectors.copy()
    nan[0, 1, 2], inf[0, 0, 3] = np.nan, np.inf
    head = npy(np.zeros((1, 2, 768), np.float32))[:128]
    for name, body, says in (
        ("nothing", b"", "no .npy"),
        ("JSON", b"{}", "no .npy"),
        ("a head alone", head, "bytes of numbers"),
        ("half", npy(vectors)[:1000], "bytes of numbers"),
        ("a head of a terabyte", head.replace(b"(1, 2, 768)", b"(9999999999, 768)"[:17]), ""),
        ("a head that is no Python", head.replace(b"'descr'", b"[[[[[[["), "no .npy"),
        ("objects", npy(np.array([[[None]]], dtype=object)), "float32"),
        ("texts", npy(np.array([[["a"]]])), "float32"),
        ("integers", npy(np.ones((1, 2, 768), np.int64)), "float32"),
        ("complex numbers", npy(np.ones((1, 2, 768), np.complex64)), "float32"),
        ("Fortran order", npy(np.asfortranarray(np.ones((2, 3, 768), np.float32))), "C order"),
        ("no dimension", npy(np.array(1.0)), "shape"),
        ("two dimensions", npy(vectors[0]), "shape"),
        ("L = 0", npy(vectors[:, :0]), "shape"),
        ("784 wide", npy(np.ones((1, 2, 784), np.float32)), "(1, 2, 784)"),
        ("NaN", npy(nan), "vectors[0][1][2] is not a finite number"),
        ("infinity", npy(inf), "vectors[0][0][3] is not a finite number"),
        ("zeros", npy(vectors * 0), "all zeros"),
    ):
        yield Bad(f"npy: {name}", lambda body=body: body, says=says, headers=NPY)
    for query, says in (
        ("lengths=3", "from 1 to 2"),
        ("lengths=a", "lengths"),
        ("lengths=1,1", "from 1 to 2"),
        ("topk=1", "topk"),
        ("top_k=x", "top_k"),
        ("steps=0", "steps"),
        ("steps=1e9", "steps"),
    ):
        yield Bad(f"npy: {query}", lambda: npy(vectors), f"{PREDICT}?{query}", says, headers=NPY)


def scoring() -> Iterator[Bad]:
    """What MLflow's route refuses of a plain model."""
    for name, content, says in (
        ("nothing asked", {}, "input fields"),
        ("an unknown key", {"input": good()}, "input fields"),
        ("784 wide", {"inputs": good(width=784)}, "(1, 2, 784)"),
        ("two dimensions", {"inputs": good()[0]}, "(2, 768)"),
        ("no vectors", {"inputs": []}, ""),
        ("L = 0", {"inputs": [[]]}, ""),
        ("vectors of nothing", {"inputs": [[[]]]}, "(1, 1, 0)"),
        ("ragged", {"inputs": ragged()}, ""),
        ("texts", {"inputs": [[[SECRET] * 768]]}, ""),
        ("null", {"inputs": [[[None] * 768]]}, "finite"),
        ("zeros", {"inputs": zeros()}, "seq_vectors[0][1] is all zeros"),
        ("an object", {"inputs": {SECRET: 1}}, ""),
        ("a text", {"inputs": SECRET * 100}, ""),
        ("misspelt params", {"inputs": good(), "params": {"lenths": [1]}}, "lenths"),
        ("params as an array", {"inputs": good(), "params": [1]}, "params"),
        ("lengths out of range", {"inputs": good(), "params": {"lengths": [9]}}, "from 1 to 2"),
        ("lengths of texts", {"inputs": good(), "params": {"lengths": [SECRET]}}, "lengths"),
        ("records", {"dataframe_records": [{"a": 1}]}, ""),
        ("a bad split", {"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, ""),
        ("both", {"inputs": good(), "instances": good()}, "input fields"),
        ("messages", {"messages": [{"role": "user", "content": SECRET}]}, ""),
    ):
        yield Bad(f"scoring: {name}", text(content), INVOCATIONS, says)
    yield Bad("scoring: 1e999", lambda: with_number("1e999")("inputs"), INVOCATIONS, "no JSON")
    for kind, body in (("text/csv", b"a,b\n1,2\n"), ("text/csv", b"\xff\x00"),
                       ("application/vnd.apache.parquet", b"PAR1 no")):  # fmt: skip
        yield Bad(f"scoring: {kind}", lambda body=body: body, INVOCATIONS, "",
                  headers={"Content-Type": kind})  # fmt: skip
    yield Bad("scoring: charset", text({"inputs": good()}), INVOCATIONS, "UTF-8", (415,),
              headers={"Content-Type": "application/json; charset=latin1"})  # fmt: skip


def others() -> Iterator[Bad]:
    """What the other routes refuse."""
    nothing = lambda: b""  # noqa: E731
    for path, says, status in (
        ("/v1/concepts", "q", 400),
        ("/v1/concepts?q=", "q", 400),
        ("/v1/concepts?q=" + "x" * 300, "q", 400),
        ("/v1/concepts?q=a&limit=0", "limit", 400),
        ("/v1/concepts?q=a&limt=3", "limt", 400),
        ("/v1/sessions/none", "no session", 404),
        ("/v1/sessions/none/rollout", "no session", 404),
        ("/v1/sessions/none/rollout?step=3", "step", 400),
        (f"/v1/{SECRET * 100}", "no route", 404),
        ("/v1/predict", "Method Not Allowed", 405),
    ):
        yield Bad(f"GET {path[:40]}", nothing, path, says, (status, 404), "GET", {})
    yield Bad("DELETE none", nothing, "/v1/sessions/none", "no session", (404,), "DELETE", {})
    for name, content, says in (
        ("unknown concepts", {"concepts": ["nothing like it"]}, "unknown text"),
        ("vectors 784 wide", {"vectors": good(width=784)[0]}, "(1, 2, 784)"),
        ("both", {"concepts": ["a"], "vectors": good()[0]}, "both"),
        ("a misspelt key", {"concept": ["a"]}, "did you mean 'concepts'"),
        ("empty concepts", {"concepts": []}, "1 to"),
    ):
        yield Bad(f"session: {name}", text(content), SESSIONS, says)


def table() -> list[Bad]:
    return [*everywhere(), *chains(), *arrays(), *scoring(), *others()]


def wrong_answer(bad: Bad, answer: Answer) -> str | None:
    """How an answer breaks the promise, in one line; None where it keeps it."""
    found = f"{bad.name}: {answer.status} {answer.body[:300]!r}"
    if answer.status not in bad.statuses:
        return f"{found}, status {bad.statuses} wanted"
    if len(answer.body) >= 1000:
        return f"{found}: {len(answer.body)} bytes"
    if b"Traceback" in answer.body or b'File "' in answer.body or b"NaN]" in answer.body:
        return f"{found}: a traceback or a NaN"
    if answer.body.count(SECRET.encode()) > 8:
        return f"{found}: repeats what was sent"
    if not answer.headers.get("x-model-version"):
        return f"{found}: no version"
    if answer.status == 431:
        return None
    told = json.loads(answer.body)
    message = told.get("detail") or told.get("message")
    if not message or bad.says not in message:
        return f"{found}: {bad.says!r} wanted"
    return None


def wrong_answers(send: Send) -> list[str]:
    """Send the whole table, and return what is wrong with the answers, a line each."""
    found = []
    for bad in table():
        wrong = wrong_answer(bad, send(bad.method, bad.path, bad.make(), dict(bad.headers)))
        if wrong:
            found.append(wrong)
    return found
