"""A pytest plugin: runs the tests of one mutant after the other, each in a fork of one session.

``mutmut run`` starts a pytest session for each mutant, which collects the tests anew. Here they are
collected once. The process that collected them runs none, so that each fork begins as a new one.
A mutant is given the tests first that have killed others of its function, then the fastest.

The environment's ``MUTANTS_JOB`` names a JSON file: ``mutants``, names to run; ``module``, whose
they are; ``known`` and ``imports``, what earlier calls have written. A line is appended to the file
in ``MUTANTS_RESULTS`` for each test that is not known, ``["test", test, seconds, [function, ...]]``
with seconds of the processor, for each module that tests import, ``["import", name]``, and for each
mutant, ``["mutant", mutant, exit code]``.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, settings
from mutmut.configuration import config
from mutmut.mutation.trampoline import set_mutant_under_test
from mutmut.state import state

SURVIVED, KILLED, NO_TESTS, TIMED_OUT = 0, 1, 33, 36
"""Exit codes as mutmut's."""
CPU_SECONDS, TIMES = 3, 3
"""A mutant has so many seconds of the processor, and so many times what its tests take."""
WALL_SECONDS = 600
"""For a mutant that waits for what never comes."""
MOST_IN_FILE, MOST_MEMORY = 1 << 27, 1 << 32
"""Bytes that a mutant may write into a file, and take of memory."""

settings.register_profile("mutants", phases=[Phase.explicit, Phase.generate])
settings.load_profile("mutants")


def pytest_runtestloop(session: pytest.Session) -> bool:
    """Run each mutant, in the place of pytest's own loop."""
    job = json.loads(Path(os.environ["MUTANTS_JOB"]).read_text(encoding="utf-8"))
    results = Path(os.environ["MUTANTS_RESULTS"])
    config()  # reads pyproject.toml of the working folder, which tests change
    new = [item for item in session.items if item.nodeid not in job["known"]]
    for name in job["imports"]:
        _import(name)
    for item in new:  # each in a fork of its own, which makes the fixtures that tests share
        if _wait(_fork(_look_at, session, item, job["module"], results)):
            pytest.exit(f"tests of {job['module']} fail without a mutant", 2)
        for kind, name, *_ in _lines(results):
            if kind == "import" and name not in sys.modules:
                _import(name)
    lines = _lines(results)
    known = job["known"] | {test: rest for kind, test, *rest in lines if kind == "test"}
    items = [item for item in session.items if item.nodeid in known]
    gc.collect()
    gc.freeze()
    kills: Counter[tuple[str, str]] = Counter()
    for mutant in job["mutants"]:
        function = mutant.rpartition(".")[2].partition("__mutmut_")[0]
        chosen = [item for item in items if function in known[item.nodeid][1]]
        chosen.sort(key=lambda item: (-kills[function, item.nodeid], known[item.nodeid][0]))
        seconds = TIMES * sum(known[item.nodeid][0] for item in chosen)
        code = NO_TESTS
        if chosen:
            code = _wait(_fork(_run, session, chosen, mutant, results, seconds), seconds)
        if code == KILLED:
            kills[function, _killer(results).read_text(encoding="utf-8")] += 1
        _append(results, ["mutant", mutant, code])
    return True


def _fork(do: Any, *words: Any) -> int:
    child = os.fork()
    if child:
        return child
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        code = do(*words)
    except BaseException:
        code = KILLED
    os._exit(code)


def _wait(child: int, seconds: float = 0.0) -> int:
    """Wait for a fork to end, and end it where it waits itself; returns its exit code."""
    signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
    signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS + seconds if seconds else 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.setitimer(signal.ITIMER_REAL, 0)
    return TIMED_OUT if code in (-signal.SIGXCPU, -signal.SIGKILL) else code


def _run(
    session: pytest.Session,
    items: list[pytest.Item],
    mutant: str,
    results: Path,
    seconds: float,
) -> int:
    """Run tests until one fails, and write which one that is."""
    limit = int(CPU_SECONDS + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_IN_FILE, MOST_IN_FILE))
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_MEMORY, MOST_MEMORY))
    set_mutant_under_test(mutant)
    for item, following in zip(items, [*items[1:], None], strict=True):
        _killer(results).write_text(item.nodeid, encoding="utf-8")
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed:
            return KILLED
    return SURVIVED


def _killer(results: Path) -> Path:
    return results.with_suffix(".killer")


def _look_at(session: pytest.Session, item: pytest.Item, module: str, results: Path) -> int:
    """Run a test without a mutant, and write what it takes and which functions it calls."""
    set_mutant_under_test("stats")
    before, begun = set(sys.modules), time.process_time()
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
    if session.testsfailed:
        results.with_suffix(".failed").write_text(item.nodeid, encoding="utf-8")
        return 1
    called = [name.removeprefix(f"{module}.") for name in state()._stats]
    _append(results, ["test", item.nodeid, time.process_time() - begun, sorted(called)])
    for name in sorted(set(sys.modules) - before):
        _append(results, ["import", name])
    return 0


def _import(name: str) -> None:
    """Import what tests have imported, so that no fork has to."""
    with suppress(Exception):
        importlib.import_module(name)


def _append(results: Path, line: list[Any]) -> None:
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _lines(results: Path) -> list[list[Any]]:
    return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
