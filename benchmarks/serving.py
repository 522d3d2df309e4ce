"""`ocp-mamba serve` beside `mlflow models serve`: the same model, machine and requests, in one run.

All servers are up at once and idle but for the one that is asked; they take turns, and the best
round of each counts. The client runs on the same cores, in a process of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from benchmarks import timing
from benchmarks.frame import ROOT, Row, Table
from benchmarks.models import SINGLE
from benchmarks.run import Run
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.vocabulary import Vocabulary
from ocp_mamba.errors import RequestError
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.bundle import write_bundle
from ocp_mamba.serving.pyfunc import save_pyfunc
from ocp_mamba.serving.text import TextPredictor
from ocp_mamba.tracking.store import SETTINGS

DATA = ROOT / "ocp_training_9k.npz"
CLIENTS, REQUESTS, SEED = 64, 500, 0
WARM_UP = 10
SPEED_GOAL, LATENCY_GOAL_MS, STEP_GOAL = 5.0, 2.0, 1.5
START_S = 300.0
JSON = {"Content-Type": "application/json"}
STOCK, OURS, ONE_THREAD = "mlflow models serve", "ocp-mamba serve", "ocp-mamba serve --threads 1"
TEXTS, VECTORS = "texts", "vectors, JSON"
ONE_PASS, ANSWER = "one pass of the model", "the model for texts"
TEXT_MODEL = "ocp_mamba.serving.text_pyfunc"


@dataclass(frozen=True)
class Contestant:
    """A server and how it is asked; ``server`` is the name of a running one."""

    request: str
    server: str
    path: str
    bodies: list[str]


@dataclass(frozen=True)
class Running:
    """A server process."""

    port: int
    process: psutil.Process
    log: Path

    def mib(self) -> float:
        """Memory of the process and its children."""
        family = [self.process, *self.process.children(recursive=True)]
        return sum(member.memory_info().rss for member in family) / timing.MIB


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@contextmanager
def served(words: list[str], folder: Path) -> Iterator[Running]:
    """Start a server by the words of its command; ended with the block.

    Raises:
        SystemExit: it does not answer; its log is printed.
    """
    port = free_port()
    log = folder / f"{port}.log"
    bin_folder = str(Path(sys.executable).parent)
    path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as out:
        started = subprocess.Popen(
            [sys.executable, "-m", *words, "--port", str(port)],
            cwd=folder, env=environment, stdout=out, stderr=out,
        )  # fmt: skip
    process = psutil.Process(started.pid)
    try:
        until = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError as error:
                if time.monotonic() > until or started.poll() is not None:
                    raise SystemExit(f"{words}: no answer: {log.read_text()}") from error
                time.sleep(0.2)
        yield Running(port, process, log)
    finally:
        if started.poll() is None:
            for member in [*process.children(recursive=True), process]:
                member.kill()
        started.wait()


def ask(running: Running, path: str, bodies: list[str], clients: int, seconds: float) -> Any:
    """Let clients ask for a time; returns what `http_load` prints.

    Raises:
        SystemExit: a request failed.
    """
    plan = {"host": "127.0.0.1", "port": running.port, "path": path, "headers": JSON,
            "bodies": bodies, "clients": clients, "seconds": seconds}  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(plan, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.http_load", file.name],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        lives = running.process.is_running() and running.process.status()
        said = running.log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise SystemExit(f"{path}: {done.stderr}\nthe server is {lives or 'gone'}: {said}")
    found = json.loads(done.stdout)
    if set(found["statuses"]) - {"200"}:
        raise SystemExit(f"{path}: answers {found['statuses']}, only 200 wanted")
    return found


def contexts(dataset: Dataset) -> list[np.ndarray]:
    """Bank rows of contexts of the validation split, whose texts name one row each."""
    vocabulary = Vocabulary(dataset.texts)
    examples = dataset.examples("val")
    order = np.random.default_rng(SEED).permutation(len(examples.chain))
    found: list[np.ndarray] = []
    for i in order:
        rows = dataset.chain(int(examples.chain[i]))[: examples.position[i]]
        try:
            known = all(vocabulary.row(str(dataset.texts[row])) == row for row in rows)
        except RequestError:  # a text that several rows bear
            continue
        if known:
            found.append(rows)
        if len(found) == REQUESTS:
            break
    return found


def contestants(dataset: Dataset, rows: list[np.ndarray]) -> list[Contestant]:
    """Who is asked what."""
    texts = [[str(t) for t in dataset.texts[r]] for r in rows]
    vectors = [np.asarray(dataset.bank[r], dtype=np.float64).round(7).tolist() for r in rows[:100]]
    ours = [json.dumps({"concepts": [chain]}) for chain in texts]
    stock = [json.dumps({"dataframe_records": [{"concepts": chain}]}) for chain in texts]
    inputs = [json.dumps({"inputs": [chain]}) for chain in vectors]
    given = [json.dumps({"vectors": [chain]}) for chain in vectors]
    return [
        Contestant(TEXTS, STOCK, "/invocations", stock),
        Contestant(TEXTS, OURS, "/v1/predict", ours),
        Contestant(TEXTS, ONE_THREAD, "/v1/predict", ours),
        Contestant(VECTORS, f"{STOCK} ", "/invocations", inputs),
        Contestant(VECTORS, OURS, "/v1/predict", given),
    ]


def commands(folder: Path, model: OCPMambaLVM, dataset: Dataset) -> dict[str, list[str]]:
    """Write the model in each form; returns the command of each server by its name."""
    encoder = dataset.meta["encoder"]
    checkpoint = folder / "model.pt"
    save_checkpoint(checkpoint, model, dataset_fingerprint="benchmark", encoder=encoder)
    facts = {"run_id": "-", "epoch": 1, "metrics_version": 1, "pool_size": dataset.n_concepts,
             "metrics": {}, "gates": {}}  # fmt: skip
    bundle = write_bundle(folder / "bundle", checkpoint, dataset, facts)
    save_pyfunc(folder / "vectors", checkpoint, bundle)
    stock = ["mlflow", "models", "serve", "--env-manager", "local", "-m"]
    ours = ["ocp_mamba", "serve", str(checkpoint), "--data", str(DATA)]
    found = {OURS: ours, ONE_THREAD: [*ours, "--threads", "1"]}
    found[f"{STOCK} "] = [*stock, str(folder / "vectors")]
    if importlib.util.find_spec(TEXT_MODEL) is not None:
        save = importlib.import_module(TEXT_MODEL).save_text_pyfunc
        save(folder / "texts", checkpoint, bundle)
        found[STOCK] = [*stock, str(folder / "texts")]
    return found


def milliseconds(seconds: list[float]) -> Row:
    """Percentiles of answers as cells."""
    found = np.percentile(np.asarray(seconds) * 1e3, [50, 95, 99]).tolist()
    return dict(zip(("p50 ms", "p95 ms", "p99 ms"), found, strict=True))


def own_times(
    model: OCPMambaLVM, dataset: Dataset, rows: list[np.ndarray]
) -> dict[str, list[float]]:
    """Seconds of each context by what is called as a library: the model, or the model for texts."""
    words = TextPredictor(model, np.asarray(dataset.bank, np.float32), dataset.texts)

    def one_pass(r: np.ndarray) -> None:
        model(torch.from_numpy(np.asarray(dataset.bank[r], dtype=np.float32))[None])

    def answer(r: np.ndarray) -> None:
        words.predict([[str(text) for text in dataset.texts[r]]])

    seconds: dict[str, list[float]] = {}
    with torch.inference_mode():
        for name, call in ((ONE_PASS, one_pass), (ANSWER, answer)):
            seconds[name] = []
            for r in [*rows[:WARM_UP], *rows]:
                begun = time.perf_counter()
                call(r)
                seconds[name].append(time.perf_counter() - begun)
            del seconds[name][:WARM_UP]
    return seconds


def many_clients(run: Run, who: list[Contestant], servers: dict[str, Running]) -> None:
    """Requests per second of many clients; the best of the rounds of each."""
    goal = run.goal(f"texts, {CLIENTS} clients: at least {SPEED_GOAL:g} times {STOCK}")
    seconds, n_rounds = (2.0, 1) if run.quick else (8.0, 3)
    table = run.table(
        f"{CLIENTS} clients",
        [{"request": c.request, "server": c.server.strip()} for c in who],
        f"Each client sends one request after the other, one chain each. Best of {n_rounds} "
        f"rounds of {seconds:g} s.",
    )
    best: dict[int, float] = {}
    for _ in range(n_rounds):
        for i, (c, row) in enumerate(zip(who, table.rows, strict=True)):
            if run.over():
                break
            if c.server not in servers:
                run.skip(row, "this version has no model for people")
                continue
            found = ask(servers[c.server], c.path, c.bodies, CLIENTS, seconds)
            speed = len(found["seconds"]) / found["span"]
            if speed > best.get(i, 0.0):
                best[i] = speed
                cells = {"requests/s": speed, **milliseconds(found["seconds"])}
                run.fill(row, {**cells, "server MiB": servers[c.server].mib()})
    if 0 in best and 1 in best:
        run.reach(goal, f"{best[1] / best[0]:.1f}", best[1] >= SPEED_GOAL * best[0])


def one_client(
    run: Run,
    who: list[Contestant],
    servers: dict[str, Running],
    own: dict[str, list[float]],
) -> None:
    """Seconds of single requests, beside the model's own."""
    goals = {
        name: run.goal(
            f"texts, one client: p50 within {LATENCY_GOAL_MS:g} ms of {name}, called as a library"
        )
        for name in own
    }
    table = run.table(
        "One client",
        [{"request": c.request, "server": c.server.strip()} for c in who],
    )
    run.add(
        Table(
            "Called as a library",
            [{"what": name, **milliseconds(times)} for name, times in own.items()],
            "One chain after the other, in the main thread. The model for texts also finds the "
            "texts' vectors, and the nearest concepts by an exact search, as the requests do.",
        )
    )
    seconds = 2.0 if run.quick else 8.0
    p50 = {name: float(np.percentile(np.asarray(times) * 1e3, 50)) for name, times in own.items()}
    for c, row in zip(who, table.rows, strict=True):
        if run.over():
            break
        if c.server not in servers:
            run.skip(row, "this version has no model for people")
            continue
        cells = milliseconds(ask(servers[c.server], c.path, c.bodies, 1, seconds)["seconds"])
        over = {name: float(cells["p50 ms"] or 0) - own_p50 for name, own_p50 in p50.items()}
        run.fill(row, {**cells, **{f"p50 beyond {name}, ms": ms for name, ms in over.items()}})
        if (c.request, c.server) == (TEXTS, OURS):
            for name, goal in goals.items():
                run.reach(goal, f"{over[name]:.2f} ms", over[name] <= LATENCY_GOAL_MS)


def sessions(run: Run, server: Running, model: OCPMambaLVM, chain: list[str]) -> None:
    """A session's step over HTTP, beside the model's own step, early and late in a chain."""
    goal = run.goal(f"a session's step: p50 at most {STEP_GOAL:g} times that of `step`")
    seen = (10, 100) if run.quick else (10, 1_000, 8_000)
    table = run.table("A session's step", [{"vectors before": n} for n in seen])
    cache, vector = model.allocate_inference_cache(1), torch.randn(1, 768)
    own = timing.rounds(
        {"step": lambda: model.step(vector, None, cache)},
        n_rounds=10 if run.quick else 100,
        warmup=WARM_UP,
    )
    for n, cells in zip(seen, table.rows, strict=True):
        if run.over():
            break
        before = (chain * (n // len(chain) + 1))[:n]
        body = json.dumps({"concepts": before, "top_k": 0})
        begun = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/v1/sessions", body.encode(), JSON
        )
        session = json.load(urllib.request.urlopen(begun))["session"]
        one = json.dumps({"concept": chain[0]})
        path = f"/v1/sessions/{session}/step"
        found = milliseconds(ask(server, path, [one], 1, 1.0 if run.quick else 4.0)["seconds"])
        ratio = float(found["p50 ms"] or 0) / (own["step"].median * 1e3)
        run.fill(cells, {**found, "step, p50 ms": own["step"].median * 1e3, "ratio": ratio})
        run.reach(goal, f"{ratio:.2f}", ratio <= STEP_GOAL and goal.met is not False)


def main(run: Run) -> None:
    """Measure many clients, one client, and a session's step."""
    os.environ |= SETTINGS
    torch.manual_seed(SEED)
    dataset, model = Dataset.load(DATA), build_model(SINGLE).eval()
    rows = contexts(dataset)
    who = contestants(dataset, rows)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        servers = {
            name: stack.enter_context(served(words, folder))
            for name, words in commands(folder, model, dataset).items()
        }
        many_clients(run, who, servers)
        alone = own_times(model, dataset, rows[:20] if run.quick else rows)
        one_client(run, who, servers, alone)
        sessions(run, servers[OURS], model, [str(dataset.texts[row]) for row in rows[0]])
