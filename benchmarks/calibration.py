"""How much slower this machine is than the one for which the time limits were written.

A matrix product in the precision of training and a copy of memory are timed for about a second.
The medians count, not the best times: a loaded machine needs longer limits too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from statistics import median

import torch

from ocp_mamba.training.trainer import resolve_precision

WIDTH, COPIED_BYTES, ROUNDS = 2048, 2**28, 9
REFERENCE: Mapping[str, float] = {"product": 0.041, "copy": 0.019}
"""Seconds on the reference machine, an AMD EPYC with avx512_bf16 and 2 cores.

They are the medians of six measurements on the idle machine (2026-11-28).
"""

MOST = 50.0
"""Above this a machine is taken to be disturbed for a moment, not to be that slow."""


def measure() -> dict[str, float]:
    """Return the median seconds of the product and of the copy, by the names of `REFERENCE`."""
    precision = resolve_precision("auto", torch.device("cpu"))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a = torch.randn(WIDTH, WIDTH).to(dtype)
    source = torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return {"product": _median(lambda: a @ a), "copy": _median(lambda: target.copy_(source))}


def slowness(measured: Mapping[str, float] | None = None) -> float:
    """Return how many times as long this machine takes as the reference, between 1 and `MOST`.

    The slower of the two measurements decides. Without ``measured``, `measure` is called.
    """
    found = measure() if measured is None else measured
    return min(MOST, max(1.0, *(found[name] / REFERENCE[name] for name in REFERENCE)))


def _median(call: Callable[[], object]) -> float:
    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
