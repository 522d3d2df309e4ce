"""Bad requests to the service, over real HTTP: a table of them, damaged bodies, clients that leave.

A request is *refused* where the answer is a 4xx of under 1 kB that says what is wrong, and it
*survives* where it is answered with finite numbers. A 5xx, a traceback, a NaN or silence is *lost*.
After each group a good request must still be answered as before.
"""

from __future__ import annotations

import json
import random
import socket
import tempfile
from pathlib import Path

from bad_requests import JSON, NPY, PREDICT, Answer, good, npy, table, wrong_answer
from services import LIMIT_S, Running, write_model

from soak.result import Log, Outcome, Result

CAMPAIGN = "endpoint"
SEED = 20261128
DAMAGED, LEAVING = 1000, 100
"""Damaged bodies of each kind, and clients that leave, in the full form."""
LARGEST_ANSWER = 1000


def run(quick: bool, log: Log) -> list[Result]:
    """Send bad requests to a service of a tiny model; see `soak.__main__`."""
    parts = 20 if quick else 1
    with (
        tempfile.TemporaryDirectory(prefix="soak-endpoint-") as scratch,
        Running(write_model(Path(scratch))) as running,
    ):
        service = _Service(running)
        results = _table(service, every=parts)
        for kind, body, headers in _bodies():
            results += _damaged(service, kind, body, headers, DAMAGED // parts)
        results += _leaving(service, LEAVING // parts)
    for result in results:
        if result.outcome == "lost":
            log(f"lost: {result.case}: {result.detail}")
    return results


class _Service:
    """A running service, and what it answers to a good request."""

    def __init__(self, running: Running) -> None:
        self.address, self.send = running.address, running.send
        self.asked = json.dumps({"vectors": good(), "top_k": 1}).encode()
        self.wanted = self.send("POST", PREDICT, self.asked, JSON).body

    def still_answers(self, case: str) -> Result:
        """Whether a good request is answered as it was before."""
        answer = self.send("POST", PREDICT, self.asked, JSON)
        same = answer.status == 200 and answer.body == self.wanted
        detail = "" if same else f"{answer.status} {answer.body[:200]!r}"
        outcome: Outcome = "survived" if same else "lost"
        return Result(CAMPAIGN, f"a good request after {case}", outcome, detail)


def _table(service: _Service, every: int) -> list[Result]:
    results = []
    for bad in table()[::every]:
        try:
            answer = service.send(bad.method, bad.path, bad.make(), dict(bad.headers))
            wrong = wrong_answer(bad, answer)
        except OSError as error:
            wrong = f"{bad.name}: {type(error).__name__} {error}"
        case = f"bad request to {bad.path.split('?')[0]}" if bad.path in KNOWN else "others"
        results.append(Result(CAMPAIGN, case, "lost" if wrong else "refused", wrong or ""))
    return [*results, service.still_answers("the table")]


KNOWN = ("/v1/predict", "/invocations", "/v1/sessions")


def _bodies() -> list[tuple[str, bytes, dict[str, str]]]:
    """Bodies that the service takes, by what they are."""
    import numpy as np

    return [
        ("JSON", json.dumps({"vectors": good(2, 3), "top_k": 1, "lengths": [3, 2]}).encode(), JSON),
        ("npy", npy(np.array(good(2, 3), dtype=np.float32)), NPY),
    ]


def _damaged(
    service: _Service, kind: str, body: bytes, headers: dict[str, str], n: int
) -> list[Result]:
    """Send a body with flipped, cut, doubled or swapped parts."""
    drawn = random.Random(SEED)
    case = f"damaged {kind}"
    results = []
    for _ in range(n):
        damaged = _damage(body, drawn)
        try:
            answer = service.send("POST", PREDICT, damaged, headers)
        except OSError as error:
            results.append(Result(CAMPAIGN, case, "lost", f"{type(error).__name__} {error}"))
            continue
        results.append(_judged(case, answer))
    return [*results, service.still_answers(f"damaged {kind}")]


def _damage(body: bytes, drawn: random.Random) -> bytes:
    at, end = sorted(drawn.randrange(len(body) + 1) for _ in range(2))
    if kind := drawn.randrange(5):
        cut, rest = body[at:end], body[end:]
        parts = (rest, cut * 2 + rest, rest + cut, drawn.randbytes(end - at) + rest)
        return body[:at] + parts[kind - 1]
    flipped = bytearray(body)
    for _ in range(drawn.randrange(1, 9)):
        flipped[drawn.randrange(len(flipped))] ^= 1 << drawn.randrange(8)
    return bytes(flipped)


def _judged(case: str, answer: Answer) -> Result:
    found = f"{answer.status} {answer.body[:300]!r}"
    if answer.status == 200:
        wrong = (b"NaN", b"Infinity", b'"score":null', b'"score": null')
        finite = not any(word in answer.body for word in wrong)
        return Result(CAMPAIGN, case, "survived" if finite else "lost", found)
    told = 400 <= answer.status < 500 and len(answer.body) < LARGEST_ANSWER
    told = told and b"Traceback" not in answer.body
    return Result(CAMPAIGN, case, "refused" if told else "lost", found)


def _leaving(service: _Service, n: int) -> list[Result]:
    """Clients that close the connection in the middle of a request, or before the answer."""
    drawn, case = random.Random(SEED), "a client leaves in the middle"
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(service.asked)}\r\n\r\n"
    ).encode()
    whole = head + service.asked
    for _ in range(n):
        with socket.create_connection(service.address, timeout=LIMIT_S) as client:
            client.sendall(whole[: drawn.randrange(1, len(whole) + 1)])
    after = service.still_answers("clients that leave")
    outcome: Outcome = "survived" if after.outcome == "survived" else "lost"
    return [*(Result(CAMPAIGN, case, outcome, after.detail) for _ in range(n)), after]
