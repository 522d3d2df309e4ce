"""Kill a real training at many moments, go on with it, and compare with one that was left alone.

Each training is a process of its own, forked from one that has imported everything. It ends by
``os._exit`` at a named moment, as by SIGKILL: nothing is cleaned up. The same training is then
resumed, and what it leaves is compared with an uninterrupted one: weights, metrics, MLflow's runs,
registered versions, files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from soak.result import Log, Result
from soak.tiny import EPOCHS, Place, import_all, migrated

CAMPAIGN = "kill"
KILLED = 9
STEPS = 3 * EPOCHS
"""36 train chains in batches of 16."""


@dataclass(frozen=True)
class Moment:
    """When a training is killed: at the n-th call of a function, before or after it.

    Attributes:
        case: in words, for the table.
        place: ``module:name`` or ``module:Class.name``.
        call: number of the call, from 1.
        after: whether the call ends first.
        within_epochs: whether the state is written after every step.
    """

    case: str
    place: str
    call: int = 1
    after: bool = False
    within_epochs: bool = False

    def __str__(self) -> str:
        """Return it in words."""
        when = "after" if self.after else "before"
        often = ", state at every step" if self.within_epochs else ""
        return f"{when} call {self.call} of {self.place}{often}"

    def arm(self) -> None:
        """Let this process end at the moment."""
        module_name, _, path = self.place.partition(":")
        owner: Any = importlib.import_module(f"ocp_mamba.{module_name}")
        *parents, name = path.split(".")
        for parent in parents:
            owner = getattr(owner, parent)
        original = owner[name] if isinstance(owner, dict) else getattr(owner, name)
        calls = 0

        def dying(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == self.call and not self.after:
                os._exit(KILLED)
            result = original(*args, **kwargs)
            if calls == self.call:
                os._exit(KILLED)
            return result

        if isinstance(owner, dict):
            owner[name] = dying
        else:
            setattr(owner, name, dying)


def both(case: str, place: str, call: int = 1, *, within_epochs: bool = False) -> list[Moment]:
    """Return the moments before and after a call."""
    return [Moment(case, place, call, after, within_epochs) for after in (False, True)]


START, TRAIN, WRITE = "at the start", "within an epoch", "while the state is written"
EPOCH, EVALUATE, STORE = "at an epoch's end", "in the evaluation", "while models are stored"
REGISTER, PUBLISH, END = "while it registers", "while the output is written", "at the end"

MOMENTS: tuple[Moment, ...] = (
    Moment(START, "jobs.train:prepare"),
    Moment(START, "jobs.train:_check_and_evaluate_baselines", after=True),
    Moment(START, "tracking.session:_start", after=True),
    *both(START, "training.run_folder:RunFolder.note"),
    *both(START, "tracking.run:TrackedRun.log_params"),
    Moment(START, "jobs.train:log_baseline", 2, after=True),
    Moment(START, "training.trainer:make_plan", after=True),
    Moment(TRAIN, "training.trainer:train_step", 1, after=True),
    Moment(TRAIN, "training.trainer:train_step", 5),
    Moment(TRAIN, "training.trainer:train_step", STEPS, after=True),
    *(
        Moment(TRAIN, "training.trainer:train_step", step, after=True, within_epochs=True)
        for step in (1, 2, 3, 4, 6, STEPS)
    ),
    *(
        moment
        for write in (1, 2, 3, 6)
        for moment in both(WRITE, "training.checkpointing:save_checkpoint", write)
    ),
    *(Moment(WRITE, "system.files:sync", write) for write in (2, 4, 6)),
    Moment(WRITE, "training.checkpointing:save_checkpoint", 3, True, within_epochs=True),
    Moment(WRITE, "system.files:sync", 3, within_epochs=True),
    *(
        moment
        for epoch in range(1, EPOCHS + 1)
        for moment in both(EPOCH, "tracking.run:TrackedRun.on_epoch", epoch)
    ),
    Moment(EPOCH, "training.trainer:_validate", 2),
    Moment(EPOCH, "training.trainer:_validate", EPOCHS, after=True, within_epochs=True),
    Moment(EVALUATE, "jobs.train:evaluate"),
    Moment(EVALUATE, "jobs.train:inference_latency", after=True),
    Moment(EVALUATE, "jobs.train:log_training"),
    *both(STORE, "tracking.operations:APPLY.model"),
    Moment(STORE, "tracking.operations:save_pyfunc", after=True),
    *both(STORE, "tracking.operations:APPLY.text_model"),
    Moment(STORE, "tracking.operations:APPLY.artifact", 2, after=True),
    Moment(STORE, "jobs.train:log_training", after=True),
    *both(REGISTER, "tracking.registry.register:register_best"),
    Moment(REGISTER, "tracking.registry.register:mlflow.register_model", after=True),
    *both(REGISTER, "tracking.operations:register_text"),
    *both(PUBLISH, "training.run_folder:RunFolder.publish"),
    Moment(PUBLISH, "training.run_folder:shutil.copyfileobj", after=True),
    *both(END, "tracking.run:TrackedRun.end"),
    *both(END, "training.run_folder:_remove", 2),
)

QUICK = (15,)
"""Places in `MOMENTS` of the short form: within an epoch, after a state."""


def run(quick: bool, log: Log) -> list[Result]:
    """Kill trainings, resume them and compare; see `soak.__main__`."""
    import_all()
    moments = tuple(m for n, m in enumerate(MOMENTS) if n in QUICK) if quick else MOMENTS
    with tempfile.TemporaryDirectory(prefix="soak-kill-") as scratch:
        root = Path(scratch)
        database = migrated(root)
        wanted = _reference(Place(root / "reference", database))
        results = []
        for number, moment in enumerate(moments):
            result = _try(moment, Place(root / f"{number:03d}", database), wanted)
            results.append(result)
            if result.outcome != "survived":
                log(f"{result.outcome}: {result.detail}")
        if not quick:
            results += [
                _by_signal(Place(root / f"signal-{n}", database), n, wanted) for n in range(5)
            ]
    return results


def _reference(place: Place) -> dict[str, Any]:
    """What a training leaves that nobody kills."""
    if place.run(place.train):
        raise RuntimeError(f"the training that is left alone failed: {place.said()}")
    return _left(place)


def _try(moment: Moment, place: Place, wanted: dict[str, Any]) -> Result:
    minutes = 1e-9 if moment.within_epochs else 0.0

    def until_killed() -> None:
        moment.arm()
        place.train(save_minutes=minutes)

    code = place.run(until_killed)
    if code != KILLED:
        return Result(CAMPAIGN, moment.case, "lost", f"{moment} was not reached: {place.said()}")
    return _resumed(place, moment.case, str(moment), wanted)


def _by_signal(place: Place, number: int, wanted: dict[str, Any]) -> Result:
    """Kill by SIGKILL, wherever the training is just then, and resume until it has ended."""
    seconds = 0.5 + 0.7 * number
    child = place.fork(lambda: place.train(save_minutes=1e-9))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.waitstatus_to_exitcode(status) == 0:
        return Result(CAMPAIGN, "by SIGKILL after some time", "not-run", "it had ended before")
    said = f"SIGKILL after {seconds:.1f} s"
    return _resumed(place, "by SIGKILL after some time", said, wanted)


def _resumed(place: Place, case: str, moment: str, wanted: dict[str, Any]) -> Result:
    """Resume a killed training, and compare what it leaves."""
    if place.run(lambda: place.train(resume=True)):
        return Result(CAMPAIGN, case, "lost", f"{moment}: --resume failed: {place.said()}")
    found = _left(place)
    wrong = [
        f"{key}: wanted {wanted[key]}, found {found[key]}"
        for key in wanted
        if found[key] != wanted[key]
    ]
    if wrong:
        return Result(CAMPAIGN, case, "lost", f"{moment}: {'; '.join(wrong)}")
    return Result(CAMPAIGN, case, "survived", moment)


def _left(place: Place) -> dict[str, Any]:
    """What a training has left, in a form that a second one must leave too."""

    def look() -> None:
        (place.folder / "left.json").write_text(json.dumps(_look(place)))

    if place.run(look):
        raise RuntimeError(f"what was left cannot be read: {place.said()}")
    left: dict[str, Any] = json.loads((place.folder / "left.json").read_text())
    return left


def _look(place: Place) -> dict[str, Any]:
    import mlflow

    from ocp_mamba.model.checkpoint import load_checkpoint
    from ocp_mamba.system.files import sha256_of

    client = mlflow.MlflowClient(f"sqlite:///{place.folder / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = sorted(r.info.run_name for r in runs if "mlflow.parentRunId" in r.data.tags)
    run = parents[0]
    weights = load_checkpoint(place.output).state_dict
    versions = client.search_model_versions("name = 'ocp-mamba-lvm'")
    rows = client.search_logged_models([run.info.experiment_id])
    points = {
        name: sorted(
            client.get_metric_history(run.info.run_id, name), key=lambda p: (p.timestamp, p.step)
        )
        for name in run.data.metrics
        if not name.startswith("system/")
    }
    return {
        "weights": _digest(weights),
        "runs": [r.info.status for r in parents],
        "children": children,
        "steps": {k: [p.step for p in v] for k, v in points.items()},
        "val cosine": [p.value for p in points["val_next_vec_cosine"]],
        "final cosine": run.data.metrics["next_vec_cosine"],
        "versions": len(versions),
        "alias": client.get_model_version_by_alias("ocp-mamba-lvm", "candidate").version,
        "registered bytes are the output's": [
            v.tags["checkpoint.sha256"] == sha256_of(place.output) for v in versions
        ],
        "rows": sorted((r.name, str(r.status)) for r in rows),
        "left behind": left_behind(place.output.parent),
    }


def _digest(weights: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode() + weights[name].numpy().tobytes())
    return digest.hexdigest()


def left_behind(folder: Path) -> list[str]:
    """Return the names of files that only an interrupted training may have."""
    kinds = (".part", ".last.pt", ".queue.jsonl")
    found = [p.name for p in folder.rglob("*") if p.name.endswith(kinds) or ".epoch-" in p.name]
    return sorted(found)
