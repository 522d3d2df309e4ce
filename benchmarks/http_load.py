"""A client of HTTP servers that costs little itself: keep-alive connections over plain sockets.

Run in a process of its own by `benchmarks.serving`:

    python -m benchmarks.http_load FILE

FILE is a JSON object with host, port, path, headers, bodies (texts), clients and seconds. Each
client sends one request after the other. What is printed is a JSON object: seconds of each request
that began after the warm-up, the statuses, and the span.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

WARM_UP_S = 0.5


def request_bytes(plan: dict[str, Any], body: str) -> bytes:
    """Return one whole HTTP request."""
    content = body.encode()
    head = [f"POST {plan['path']} HTTP/1.1", f"Host: {plan['host']}:{plan['port']}"]
    head += [f"{name}: {value}" for name, value in plan["headers"].items()]
    return "\r\n".join([*head, f"Content-Length: {len(content)}", "", ""]).encode() + content


async def answer(reader: asyncio.StreamReader) -> int:
    """Read one answer whole; returns its status."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    at = lower.find(b"content-length:")
    length = int(lower[at + 15 : lower.find(b"\r\n", at)])
    await reader.readexactly(length)
    return int(head[9:12])


async def client(
    plan: dict[str, Any], requests: list[bytes], number: int, until: float, warm: float
) -> tuple[list[float], Counter[int]]:
    """Send one request after the other until a time; returns seconds and statuses."""
    reader, writer = await asyncio.open_connection(plan["host"], plan["port"])
    seconds: list[float] = []
    statuses: Counter[int] = Counter()
    i = number * 101
    while (begun := time.perf_counter()) < until:
        writer.write(requests[i % len(requests)])
        status = await answer(reader)
        if begun >= warm:
            seconds.append(time.perf_counter() - begun)
            statuses[status] += 1
        i += 1
    writer.close()
    return seconds, statuses


async def load(plan: dict[str, Any]) -> dict[str, Any]:
    """Let all clients work at once."""
    requests = [request_bytes(plan, body) for body in plan["bodies"]]
    warm = time.perf_counter() + WARM_UP_S
    until = warm + plan["seconds"]
    clients = (client(plan, requests, n, until, warm) for n in range(plan["clients"]))
    done = await asyncio.gather(*clients)
    span = time.perf_counter() - warm
    statuses = sum((counted for _, counted in done), Counter())
    return {
        "seconds": [s for seconds, _ in done for s in seconds],
        "statuses": dict(statuses),
        "span": span,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(json.loads(Path(sys.argv[1]).read_text())))))
