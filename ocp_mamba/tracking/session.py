"""The MLflow run of a training: how it is opened, and how it ends whatever happens."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import OcpMambaError, QueueError, first_line
from ocp_mamba.redact import HIDDEN, redact, redact_all
from ocp_mamba.system.process import (
    Killed,
    mlflow_run_ancestor,
    process_tags,
    stop_signals,
    undisturbed,
)
from ocp_mamba.tracking.active_run import end_active_run
from ocp_mamba.tracking.charts import describe_experiment
from ocp_mamba.tracking.dataset_input import Described
from ocp_mamba.tracking.offline_queue import Operation, queue_path, read_queue, replay_queue
from ocp_mamba.tracking.operations import apply
from ocp_mamba.tracking.resumed import RUN_VARIABLE, reopen
from ocp_mamba.tracking.run import TRAINING_INPUTS, TrackedRun
from ocp_mamba.tracking.store import (
    STORE_FAILURES,
    STORE_VARIABLE,
    is_refusal,
    open_experiment,
    retried,
    unusable,
    use_store,
)

EXPERIMENT = "ocp_mamba"
VERSIONED = ("ocp-mamba", "torch", "mlflow", "numpy")
GIT_SECONDS = 10
PARAM_CHARACTERS = 500


def config_params(**configs: Any) -> dict[str, Any]:
    """Flatten dataclasses into params: ``config_params(train=c)`` gives ``train.lr`` and so on.

    The prefix keeps them apart from the params that ``mlflow run`` logs as they were typed, so
    that runs can be compared however they were started. A tuple's text is cut after
    `PARAM_CHARACTERS`, because a store refuses longer params.
    """
    flat = {f"{name}.{k}": v for name, config in configs.items() for k, v in asdict(config).items()}
    return {k: _short(v) if isinstance(v, tuple) else v for k, v in flat.items()}


def _short(names: tuple[object, ...]) -> str:
    return ", ".join(map(str, names))[:PARAM_CHARACTERS]


@contextmanager
def track(
    dataset: Dataset | Described,
    data_path: Path | str,
    *,
    output_dir: Path | str,
    experiment: str = EXPERIMENT,
    run_name: str | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    checkpoint_every: int = 0,
    store: str | None = None,
    system_metrics: bool = True,
    inputs: Mapping[str, str] = TRAINING_INPUTS,
    evaluated: Dataset | None = None,
    resume: str | None = None,
    folder_of: Callable[[str], Path] | None = None,
) -> Iterator[TrackedRun]:
    """Open an MLflow run for the block and end it as FINISHED, FAILED or KILLED.

    A run that ``mlflow run`` made (MLFLOW_RUN_ID) is adopted, in the experiment that it has, unless
    another one is resumed, see `resumed.reopen`. A run
    ends as KILLED by SIGTERM, by Ctrl-C, and when the ``mlflow run`` command that started this
    process ends. SIGTERM and the end of that command end the process with exit code 143.

    Args:
        dataset: logged as the run's inputs; `Described` data have none, so ``inputs`` is empty.
        data_path: the file that the dataset was read from; only its name is logged.
        output_dir: folder of the offline queue, and of the last epoch's ``.pt`` until it is stored.
        experiment: name of the experiment, made where it does not exist.
        run_name: name of the run; MLflow invents one for None.
        params: the settings that the run was started with, and those that it really has.
        tags: further tags.
        checkpoint_every: store the whole model every so many epochs; 0 for best and last only.
        store: tracking URI, see `use_store`.
        system_metrics: log CPU, memory, disk and network of this machine.
        inputs: which splits the run reads, and as what.
        evaluated: the sample that it is evaluated on, of a dataset too large to be evaluated whole.
        resume: id of an interrupted run to go on with. What waits in its offline queue is sent
            first, and no metric that it holds is logged again.
        folder_of: given the run's id, returns the run's own folder, which stands for
            ``output_dir``; called as soon as the id is known.

    Raises:
        TrackingError: the store cannot be used or refuses the run.
        QueueError: what waits in a resumed run's offline queue cannot be sent.
    """
    uri = use_store(store)
    adopted = os.environ.get(RUN_VARIABLE)
    with stop_signals(mlflow_run_ancestor() if adopted else None):
        try:
            given = redact_all({**identity_tags(dataset), **(tags or {})})
            active = _start(experiment, run_name, given, system_metrics, resume)
            folder = folder_of(active.info.run_id) if folder_of else Path(output_dir)
            if resume is not None:
                _send_what_waits(folder, resume, uri)
            run = TrackedRun(
                active,
                uri,
                dataset,
                data_path,
                folder,
                checkpoint_every,
                inputs,
                evaluated,
                resumed=resume is not None,
            )
            retried(lambda: describe_experiment(run.experiment_id))
        except BaseException as error:
            with undisturbed():
                end_active_run(_outcome(error)[0])
            if isinstance(error, OcpMambaError) or not isinstance(error, STORE_FAILURES):
                raise
            raise unusable(uri, error) from error
        try:
            run.log_params(params or {})
            yield run
        except BaseException as error:
            with undisturbed():
                run.end(*_outcome(error))
            raise
        run.end("FINISHED")


def _start(
    experiment: str,
    run_name: str | None,
    tags: dict[str, str],
    system_metrics: bool,
    resume: str | None,
) -> mlflow.ActiveRun:
    """Start a run, or go on with one, as MLflow's active run."""
    known = RUN_VARIABLE in os.environ or resume is not None
    experiment_id = None if known else open_experiment(experiment)
    if resume is not None:
        reopen(resume, tags)
    return mlflow.start_run(
        run_id=resume,
        experiment_id=experiment_id,
        run_name=None if resume or run_name is None else redact(run_name),
        tags=None if resume else tags,
        log_system_metrics=system_metrics,
    )


def _send_what_waits(folder: Path, run_id: str, store: str) -> None:
    """Send what the killed process of a run has left in its offline queue."""
    queue = queue_path(folder, run_id)
    if queue.exists():
        replay(queue, store)
        mlflow.MlflowClient().update_run(run_id, status="RUNNING")  # its end may have waited


def _outcome(error: BaseException) -> tuple[str, str]:
    """The status and the reason of a run that an exception ended."""
    if isinstance(error, Killed):
        return "KILLED", error.reason
    if isinstance(error, KeyboardInterrupt):
        return "KILLED", "Ctrl-C"
    if isinstance(error, SystemExit) and not error.code:
        return "FINISHED", "exit 0"
    return "FAILED", f"{type(error).__name__}: {first_line(error)}"


def identity_tags(dataset: Dataset | Described) -> dict[str, str]:
    """Return tags for a run's process, code, package versions, dataset and encoder."""
    encoder = dataset.meta.get("encoder", {})
    return {
        **process_tags(),
        **git_state(Path(__file__).parent),
        **{f"version.{name}": _version(name) for name in VERSIONED},
        "dataset.fingerprint": dataset.fingerprint,
        "encoder.name": str(encoder.get("name", "unknown")),
        "encoder.weight_hash": str(encoder.get("weight_hash", "unknown")),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def git_state(folder: Path) -> dict[str, str]:
    """Return the tags ``git.commit`` and ``git.dirty`` of a folder; ``unknown`` outside git."""

    def git(*words: str) -> str | None:
        command = ["git", "-C", str(folder), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "-uno")
    return {
        "git.commit": commit or "unknown",
        "git.dirty": "unknown" if changes is None else str(bool(changes)).lower(),
    }


def replay(path: Path, store: str | None = None) -> list[tuple[Operation, Any]]:
    """Send the operations in an offline queue's file and delete it; returns each with its result.

    Args:
        path: the file.
        store: tracking URI, else MLFLOW_TRACKING_URI, else the one that the file names.

    Raises:
        QueueError: the file cannot be read, or the store does not answer; nothing is lost then.
    """
    written_for, _ = read_queue(path)
    address = store or os.environ.get(STORE_VARIABLE) or written_for
    if HIDDEN in address:
        raise QueueError(
            f"offline queue {path}: the password of its store {address} is not kept in a file; "
            f"give the whole address with --store, or set {STORE_VARIABLE}"
        )
    uri = use_store(address)
    return replay_queue(path, apply, store=uri, is_refusal=is_refusal)
