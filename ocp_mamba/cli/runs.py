"""`ocp-mamba runs`: send what waits in an offline queue, end stale runs, link to the UI."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ocp_mamba.errors import TrackingError, first_line
from ocp_mamba.redact import redact

if TYPE_CHECKING:
    from ocp_mamba.tracking.registry import ModelVersion

STORE_OPTION = click.option(
    "--store",
    metavar="URI",
    help="Tracking store; default MLFLOW_TRACKING_URI, else sqlite:///mlflow.db here.",
)


@click.group(
    epilog="""
    \b
    Example:
      ocp-mamba runs stale
    """
)
def runs() -> None:
    """Maintain tracked runs."""


@runs.command(
    epilog="""
    \b
    Example:
      ocp-mamba runs replay outputs/0123abcd.queue.jsonl
    """
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--store",
    metavar="URI",
    help="Tracking store; default MLFLOW_TRACKING_URI, else the one that FILE names.",
)
def replay(file: Path, store: str | None) -> None:
    """Send the operations that wait in FILE, an offline queue, and delete FILE.

    FILE holds what a run could not send while the tracking store did not answer: metrics, files,
    models, the registration, the run's end. Sending an operation twice changes nothing.
    """
    from ocp_mamba.errors import QueueError
    from ocp_mamba.tracking import session

    with _clear_errors(QueueError, TrackingError):
        sent = session.replay(file, store)
    click.echo(f"{len(sent)} operations sent; {file} deleted")
    for operation, result in sent:
        if operation["op"] == "register":
            click.echo(f"registered {result.name} version {result.version}{_aliases(result)}")
        elif operation["op"] == "end":
            click.echo(f"run {operation['run_id']} ended, {operation['status']}")


@runs.command(
    epilog="""
    \b
    Examples:
      ocp-mamba runs stale
      ocp-mamba runs stale --end --older-than 60 --outputs results
    """
)
@click.option(
    "--end", is_flag=True, help="End the runs and remove the files found, instead of listing them."
)
@click.option(
    "--older-than",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="MINUTES",
    help="List a run without a process of its own only from this age on.",
)
@click.option(
    "--outputs",
    type=click.Path(file_okay=False, path_type=Path),
    default="outputs",
    show_default=True,
    metavar="FOLDER",
    help="Look for files that killed trainings left in the runs' folders here.",
)
@STORE_OPTION
def stale(end: bool, older_than: float, outputs: Path, store: str | None) -> None:
    """List stale runs: their status is RUNNING, but no process works on them.

    Also lists the files that killed trainings left, and the trainings that can be gone on with.
    What a living process uses is never touched.
    """
    from tabulate import tabulate

    from ocp_mamba.tracking.stale_runs import end_stale_runs, find_stale_runs
    from ocp_mamba.training.run_folder import clean, interrupted

    with _store(store):
        found = find_stale_runs(older_than)
        if end:
            end_stale_runs(found)
    for path in clean(outputs, remove=end):
        click.echo(f"{'removed' if end else 'left by a killed training:'} {path}")
    for folder, name in interrupted(outputs):
        click.echo(f"interrupted: {folder}; `train --output {outputs / name} --resume` goes on")
    if not found:
        click.echo("no stale runs")
        return
    rows = [[run.run_id, run.name, f"{run.minutes:.0f}", run.status, run.reason] for run in found]
    status = "ended as" if end else "would end as"
    click.echo(tabulate(rows, headers=["run", "name", "minutes", status, "why"]))


@runs.command(
    epilog="""
    \b
    Example:
      ocp-mamba runs link
    """
)
@click.option("--experiment", default="ocp_mamba", show_default=True, help="Experiment's name.")
@click.option("--run", "run_id", metavar="ID", help="Link to this run's page instead.")
@STORE_OPTION
def link(experiment: str, run_id: str | None, store: str | None) -> None:
    """Print the link to the epochs' chart, and the command that opens the UI."""
    from ocp_mamba.tracking.store import experiment_id, ui_link

    with _store(store) as uri:
        found = experiment_id(experiment)
    if found is None:
        raise click.ClickException(f"tracking store {uri} has no experiment {experiment!r}")
    address, command = ui_link(uri, found, run_id)
    if command:
        click.echo(f"start the UI:  {command}")
    click.echo(f"then open:     {address}")


def _aliases(version: ModelVersion) -> str:
    return "".join(f", alias {alias}" for alias in version.aliases)


@contextmanager
def _store(uri: str | None) -> Iterator[str]:
    """Use a store within the block; its failures are shown in one line."""
    from ocp_mamba.tracking.store import STORE_FAILURES, use_store

    with _clear_errors(TrackingError):
        used = use_store(uri)
    with _clear_errors(*STORE_FAILURES, prefix=f"tracking store {redact(used)}: "):
        yield redact(used)


@contextmanager
def _clear_errors(*kinds: type[Exception], prefix: str = "") -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise click.ClickException(prefix + first_line(error)) from error
