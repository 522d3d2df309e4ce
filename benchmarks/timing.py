"""Time several contestants so that all of them meet the same noise.

Every round runs each contestant once, in a new order; the ratios of the best rounds count.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ocp_mamba.system.malloc import give_back_freed

PROC = Path("/proc/self")
MIB = 2**20


@dataclass(frozen=True)
class Timing:
    """Seconds of one contestant over all rounds, at least one."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return median(self.seconds)


def rounds(
    contestants: Mapping[str, Callable[[], object]],
    *,
    n_rounds: int,
    warmup: int = 1,
    limit_s: float = 60.0,
    over: Callable[[], bool] = lambda: False,
) -> dict[str, Timing]:
    """Run every contestant once a round, and return their times.

    The first round keeps the order given, the others take a random one. A contestant that has used
    its share of the time is left out of the rounds that remain.

    Args:
        contestants: what to call, by name.
        n_rounds: rounds that count.
        warmup: rounds before, which do not count: first calls allocate, compile and fill caches.
        limit_s: seconds for all, in equal shares; two rounds of each count in any case.
        over: asked before every call; once it is true no more is called, and contestants without a
            round that counts are missing in what is returned.
    """
    order = list(contestants)
    shuffle = random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    gc.disable()
    try:
        for i in range(warmup + n_rounds):
            if i:
                shuffle(order)
            for name in order:
                if over():
                    break
                if len(seconds[name]) >= 2 and sum(seconds[name]) > limit_s / len(order):
                    continue
                begin = time.perf_counter()
                contestants[name]()
                if i >= warmup:
                    seconds[name].append(time.perf_counter() - begin)
    finally:
        gc.enable()
    return {name: Timing(tuple(s)) for name, s in seconds.items() if s}


def ratio(seconds: Mapping[str, float], name: str, to: str) -> float | None:
    """Return one contestant's seconds over another's, None where one was not timed."""
    return seconds[name] / seconds[to] if name in seconds and to in seconds else None


def peak_mib(call: Callable[[], object]) -> float | None:
    """Return the most memory in MiB that a call needs beyond what was held before it.

    Only Linux with glibc counts it. Elsewhere the call is made, and None is returned. Memory that
    the allocator kept from earlier calls is given back first, as it would hide what the call needs.
    """
    gc.collect()
    give_back_freed()
    try:
        (PROC / "clear_refs").write_text("5")
    except OSError:
        call()
        return None
    before = _status("VmRSS")
    call()
    return (_status("VmHWM") - before) / MIB


def _status(key: str) -> int:
    """Return a number of /proc/self/status in bytes."""
    for line in (PROC / "status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(f"{PROC / 'status'} has no {key}")
