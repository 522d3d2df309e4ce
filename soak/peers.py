"""The outages and a kill, done to this package and to what else writes trainings into MLflow.

Each training is a process (`soak.peer_training`) that waits for a word before each epoch, so that
outages begin and end where they shall. Packages that are not installed are searched in the folder
that the variable SOAK_PEERS names:

    pip install --target FOLDER --no-deps lightning pytorch-lightning lightning-utilities \
        torchmetrics accelerate
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from outages import OutageProxy
from servers import tracking_server

from soak.result import Log, Result

ROOT = Path(__file__).parents[1]
CAMPAIGN = "peers"
PEERS = {
    "ocp_mamba": (),
    "MLflow autolog, asynchronous": ("lightning",),
    "Lightning MLFlowLogger": ("lightning",),
    "Hugging Face MLflowCallback": ("transformers", "accelerate"),
}
"""The packages that each needs beside MLflow and torch."""

LOGGED = {"Hugging Face MLflowCallback": "eval_loss"}
"""The metric of an epoch's validation, where a peer has a name of its own for it."""

EPOCHS, BEGINS, ENDS = 6, 3, 5
OUTAGE_SECONDS = 20.0
"""An outage in the middle ends after so long, also where the training waits for its end."""

LONGEST_SECONDS = 60.0
"""A training that has not ended by then is killed: its store does not come back before."""

KINDS = ("refused", "hanging")
AT_ONCE = 2
"""Trainings at once: they wait most of the time."""

KILL = "kill -9 after an epoch"


@dataclass(frozen=True)
class Seen:
    """What became of a training; the seconds that logging took of its loop, and after it."""

    steps: list[int]
    status: str
    in_loop: float
    at_end: float
    ended: bool


def run(quick: bool, log: Log) -> list[Result]:
    """Train with each peer through outages and a kill.

    Args:
        quick: one outage and the kill, of this package and of one peer.
        log: takes a line for each.
    """
    peers = {k: v for k, v in PEERS.items() if not quick or k == "ocp_mamba"}
    absent = {p: [n for n in packages if not _installed(n)] for p, packages in peers.items()}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        server = tracking_server(folder)
        server.start()

        def one(peer_and_what: tuple[str, str]) -> Result:
            peer, what = peer_and_what
            case = f"{peer}: {what}"
            if absent[peer]:
                missing = f"not installed: {', '.join(absent[peer])}"
                return Result(CAMPAIGN, case, "not-run", missing)
            proxy = OutageProxy(server.url)
            place = Path(tempfile.mkdtemp(dir=folder))
            result = _try(case, peer, what, proxy, place)
            log(f"{case}: {result.outcome}, {result.detail}")
            proxy.close()
            return result

        try:
            mlflow.set_tracking_uri(server.url)
            asked = [*_outages(KINDS[:1] if quick else KINDS), KILL]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(one, itertools.product(peers, asked)))
        finally:
            server.kill()


def _outages(kinds: tuple[str, ...]) -> list[str]:
    return [f"{kind}, {moment}" for kind in kinds for moment in ("in the middle", "over the end")]


def _installed(name: str) -> bool:
    found = subprocess.run(
        [sys.executable, "-c", f"import importlib.util as u; assert u.find_spec({name!r})"],
        env=_environment(""),
        capture_output=True,
        check=False,
    )
    return found.returncode == 0


def _environment(address: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests" / "helpers"), os.environ.get("SOAK_PEERS", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "MLFLOW_TRACKING_URI": address,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "TRANSFORMERS_OFFLINE": "1",
    }


def _try(case: str, peer: str, what: str, proxy: OutageProxy, folder: Path) -> Result:
    experiment = mlflow.create_experiment(folder.name)
    address = proxy.url
    process = subprocess.Popen(
        [sys.executable, "-m", "soak.peer_training", peer, folder.name, str(EPOCHS)],
        env=_environment(address),
        cwd=folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("w"),
        text=True,
    )
    killed = threading.Timer(LONGEST_SECONDS + 120, process.kill)
    killed.start()
    try:
        in_loop, at_end, ended = _drive(process, what, proxy)
    finally:
        killed.cancel()
        process.kill()
        process.wait()
        proxy.end()
    if peer == "ocp_mamba":
        _recover(folder, address)
    seen = _seen(experiment, LOGGED.get(peer, "val_loss"), in_loop, at_end, ended)
    return _judged(case, seen, killed=what == KILL)


def _drive(
    process: subprocess.Popen[str], what: str, proxy: OutageProxy
) -> tuple[float, float, bool]:
    """Let a training run its epochs.

    Returns:
        Seconds that logging took of the loop, seconds from the loop's end to the process's, and
        whether the process ended well.
    """
    assert process.stdin
    assert process.stdout
    kind, _, moment = what.partition(", ")
    deadline = time.monotonic() + 600
    blocked, began = 0.0, time.monotonic()
    for line in process.stdout:
        if not line.startswith('{"'):
            continue
        told: dict[str, Any] = json.loads(line)
        blocked += told.get("blocked", 0.0)
        epoch, began = told.get("epoch"), time.monotonic()
        if epoch is None:
            break
        if what == KILL and epoch == ENDS:
            process.kill()
            return blocked, 0.0, False
        if moment and epoch == (BEGINS if moment == "in the middle" else EPOCHS):
            proxy.begin(kind)
            deadline = time.monotonic() + LONGEST_SECONDS
            threading.Timer(LONGEST_SECONDS, process.kill).start()
            if moment == "in the middle":
                threading.Timer(OUTAGE_SECONDS, proxy.end).start()
        process.stdin.write("go\n")
        process.stdin.flush()
    try:
        process.wait(max(1.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return blocked, time.monotonic() - began, False
    return blocked, time.monotonic() - began, process.returncode == 0


def _recover(folder: Path, address: str) -> None:
    """What this package's documentation says to do after an outage or a kill."""
    for queue in folder.rglob("*.queue.jsonl"):
        subprocess.run(
            [sys.executable, "-m", "ocp_mamba", "runs", "replay", str(queue)],
            env=_environment(address), check=True, capture_output=True)  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "ocp_mamba", "runs", "stale", "--end"],
        env=_environment(address), check=True, capture_output=True)  # fmt: skip


def _seen(experiment: str, metric: str, in_loop: float, at_end: float, ended: bool) -> Seen:
    runs = mlflow.search_runs([experiment], output_format="list")
    client = mlflow.MlflowClient()
    steps, statuses = [], []
    for found in runs:
        steps += [m.step for m in client.get_metric_history(found.info.run_id, metric)]
        statuses.append(found.info.status)
    status = ", ".join(statuses) or "no run"
    return Seen(sorted(steps), status, in_loop, at_end, ended)


def _judged(case: str, seen: Seen, *, killed: bool) -> Result:
    """Whether each epoch's metric is there once, and the run has the status that it should have."""
    wanted = range(1, ENDS if killed else EPOCHS + 1)
    # A peer that counts steps, not epochs, has as many of them as there are epochs.
    numbers = sorted({step: n for n, step in enumerate(sorted(set(seen.steps)), 1)}.values())
    absent = len(wanted) - len([n for n in numbers if n in wanted])
    doubled = len(seen.steps) - len(set(seen.steps))
    faults = []
    if absent > 0:
        faults.append(f"{absent} of {len(wanted)} epochs missing")
    if doubled:
        faults.append(f"{doubled} points twice")
    if "RUNNING" in seen.status or seen.status == "no run":
        faults.append("left RUNNING" if "RUNNING" in seen.status else "no run")
    if not killed and not seen.ended:
        faults.append("killed, because it had not ended a minute after the outage began")
    took = f"logging took {seen.in_loop:.1f} s of the loop and {seen.at_end:.1f} s after it"
    detail = "; ".join([*faults, f"status {seen.status}", took])
    return Result(CAMPAIGN, case, "lost" if faults else "survived", detail)
