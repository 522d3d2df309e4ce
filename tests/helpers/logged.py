"""LoggedModels in a store, made without a training: any files under ``artifacts``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mlflow.tracking import MlflowClient


class Logged(NamedTuple):
    """A LoggedModel and the run that it belongs to."""

    model_id: str
    run_id: str


def log_model(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    name: str = "epoch-002",
    tags: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    run_tags: Mapping[str, str] | None = None,
    of_run: bool = True,
) -> Logged:
    """Make a run and a LoggedModel of it in the store in use.

    Args:
        folder: to write the files to before they are sent.
        files: content by name, of the model's ``artifacts``.
        name: of the model.
        tags: of the model.
        params: of the model.
        metrics: of the model.
        run_tags: of the run.
        of_run: whether the model says that it belongs to the run.
    """
    client = MlflowClient()
    found = client.get_experiment_by_name("it")
    experiment = found.experiment_id if found else client.create_experiment("it")
    run = client.create_run(experiment, tags=dict(run_tags or {})).info.run_id
    model = client.create_logged_model(
        experiment, name=name, source_run_id=run if of_run else None,
        tags=dict(tags or {}), params=dict(params or {}),
    ).model_id  # fmt: skip
    artifacts = folder / model / "artifacts"
    artifacts.mkdir(parents=True)
    for file, content in files.items():
        (artifacts / file).write_bytes(content)
    client.log_model_artifacts(model, str(artifacts.parent))
    client.finalize_logged_model(model, "READY")
    for key, value in (metrics or {}).items():
        client.log_metric(run, key, value, model_id=model)
    return Logged(model, run)
