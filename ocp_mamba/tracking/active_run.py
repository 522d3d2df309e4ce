"""MLflow's active run: leave it or end it without waiting for a store that does not answer.

`mlflow.end_run` calls the store first, which may hang for minutes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import mlflow
from mlflow.tracking import fluent

from ocp_mamba.tracking.store import STORE_FAILURES

SECONDS = 5.0
"""How long a store may take to answer at the end of a run."""


def leave_active_run(run_id: str | None = None) -> str | None:
    """Make MLflow forget its active run, which stays RUNNING in the store; returns the run's id.

    The thread that logs system metrics is stopped.

    Args:
        run_id: do nothing if another run is active; None for any.
    """
    stack = fluent._active_run_stack.get()
    if not stack or run_id not in (None, stack[-1].info.run_id):
        return None
    left: str = stack.pop().info.run_id
    monitor = fluent.run_id_to_system_metrics_monitor.pop(left, None)
    if monitor is not None:
        _within_seconds(monitor.finish)
    return left


def end_active_run(status: str) -> None:
    """End MLflow's active run, if there is one and the store answers soon."""
    run_id = leave_active_run()
    if run_id is not None:
        end_run(run_id, status)


def end_run(run_id: str, status: str) -> None:
    """End a run, if the store answers soon."""

    def end() -> None:
        with suppress(*STORE_FAILURES):
            mlflow.MlflowClient().set_terminated(run_id, status)

    _within_seconds(end)


def _within_seconds(action: Callable[[], object]) -> None:
    """Do something in a thread, and leave it behind where it does not end within `SECONDS`."""
    thread = threading.Thread(target=action, daemon=True, name="end of run")
    thread.start()
    thread.join(SECONDS)
