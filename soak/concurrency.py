"""Trainings that start at once: with one output, in one folder, on a store that does not exist yet.

Each is a process of its own, forked from one that has imported everything; they begin at the same
moment. Every run must end, and its version must hold its own bytes and metrics, whatever the others
do.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from soak.kill import Moment, left_behind
from soak.result import Log, Result
from soak.tiny import EPOCHS, Place, import_all, migrated

CAMPAIGN = "concurrency"
AT_ONCE = 10
START_SECONDS = 2.0
"""Until all processes are forked and wait for the same moment."""


def run(quick: bool, log: Log) -> list[Result]:
    """Start trainings at once and compare what each leaves; see `soak.__main__`."""
    import_all()
    n = 2 if quick else AT_ONCE
    with tempfile.TemporaryDirectory(prefix="soak-concurrency-") as scratch:
        root = Path(scratch)
        database = migrated(root)
        results = _same_output(Place(root / "output", database), n)
        results += _same_resumed(Place(root / "resumed", database), 2)
        if not quick:
            results += _same_folder(Place(root / "folder", database), n)
            results += _new_store(Place(root / "store", None), n)
    for result in results:
        if result.outcome == "lost":
            log(f"lost: {result.detail}")
    return results


def _at_once(place: Place, work: Callable[[int], object], n: int) -> list[int]:
    """Do something n times at once, each in its process; returns their exit codes."""
    begin = time.time() + START_SECONDS

    def wait_and(number: int) -> None:
        time.sleep(max(0.0, begin - time.time()))
        work(number)

    children = [place.fork(lambda number=i: wait_and(number)) for i in range(n)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _same_output(place: Place, n: int) -> list[Result]:
    """Different seeds, one output: each version must hold its own run's weights."""
    codes = _at_once(place, lambda i: place.train(seed=i), n)
    return _compare(place, "trainings with one output", codes)


def _same_folder(place: Place, n: int) -> list[Result]:
    """Different outputs in one folder, in one store."""
    codes = _at_once(place, lambda i: place.train(seed=i, name=f"model-{i}.pt"), n)
    return _compare(place, "trainings with outputs in one folder", codes)


def _new_store(place: Place, n: int) -> list[Result]:
    """A store that the trainings themselves must make."""
    codes = _at_once(place, lambda i: place.train(seed=i, name=f"model-{i}.pt"), n)
    return _compare(place, "trainings on a store that does not exist", codes)


def _same_resumed(place: Place, n: int) -> list[Result]:
    """One interrupted training, resumed n times at once: one goes on, the others are refused."""

    def interrupted() -> None:
        Moment("", "tracking.run:TrackedRun.on_epoch", 2).arm()
        place.train()

    place.run(interrupted)
    case = "resumptions of one training"
    codes = _at_once(place, lambda i: place.train(resume=True), n)
    results = _compare(place, case, [0] * codes.count(0))
    for code in codes:
        if code:
            refused = "ResumeError" in place.said()
            said = "refused" if refused else place.said()
            results.append(Result(CAMPAIGN, case, "refused" if refused else "lost", said))
    if codes.count(0) != 1:
        results.append(Result(CAMPAIGN, case, "lost", f"{codes.count(0)} of {n} went on"))
    return results


def _compare(place: Place, case: str, codes: list[int]) -> list[Result]:
    """One result for each training: its exit code, its run, its version and its files."""
    failed = [code for code in codes if code]
    results = [Result(CAMPAIGN, case, "lost", f"exit {code}: {place.said()}") for code in failed]

    def look() -> None:
        (place.folder / "left.json").write_text(json.dumps(_look(place)))

    if place.run(look):
        return [*results, Result(CAMPAIGN, case, "lost", f"cannot be read: {place.said()}")]
    left = json.loads((place.folder / "left.json").read_text())
    results += [
        Result(
            CAMPAIGN, case, "lost" if wrong else "survived", f"run {run} {'; '.join(wrong)}".strip()
        )
        for run, wrong in left["runs"].items()
    ]
    if len(left["runs"]) < len(codes) - len(failed):
        results.append(Result(CAMPAIGN, case, "lost", f"{len(left['runs'])} runs of {len(codes)}"))
    if left["wrong"]:
        results.append(Result(CAMPAIGN, case, "lost", "; ".join(left["wrong"])))
    return results


def _look(place: Place) -> dict[str, Any]:
    """What is wrong with each run, and with what all of them share."""
    import mlflow

    from ocp_mamba.system.files import sha256_of

    client = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    runs = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], "params.ran.processes = '1'"
    )
    versions = client.search_model_versions("name = 'ocp-mamba-lvm'")
    digests = [v.tags["checkpoint.sha256"] for v in versions]
    outputs = sorted(place.output.parent.glob("*.pt"))
    wrong = {run.info.run_id: _wrong(place, run, versions) for run in runs}
    shared = [f"{name} was left behind" for name in left_behind(place.output.parent)]
    shared += [f"{p.name} is no run's model" for p in outputs if sha256_of(p) not in digests]
    if len(set(digests)) != len(runs):
        shared.append(f"{len(runs)} runs registered {len(set(digests))} different models")
    return {"runs": wrong, "wrong": shared}


def _wrong(place: Place, run: Any, versions: list[Any]) -> list[str]:
    """What is wrong with one run: its status, its steps, and the bytes that it registered."""
    import mlflow

    from ocp_mamba.model.checkpoint import load_checkpoint
    from ocp_mamba.system.files import sha256_of

    client = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    wrong = [] if run.info.status == "FINISHED" else [f"it is {run.info.status}"]
    points = client.get_metric_history(run.info.run_id, "val_next_vec_cosine")
    steps = [p.step for p in sorted(points, key=lambda p: p.timestamp)]
    if steps != list(range(1, EPOCHS + 1)):
        wrong.append(f"its steps are {steps}")
    own = [v for v in versions if v.tags["run_id"] == run.info.run_id]
    if len(own) != 1:
        return [*wrong, f"it has {len(own)} versions"]
    (file,) = (place.output.parent / run.info.run_id).glob("model*.pt")
    if own[0].tags["checkpoint.sha256"] != sha256_of(file):
        wrong.append("its version has other bytes")
    val = load_checkpoint(file).loop["val"]["next_vec_cosine"]
    if abs(val - run.data.metrics["best_val_next_vec_cosine"]) > 1e-9:
        wrong.append(f"its file has cosine {val}, its metric is another one")
    return wrong
