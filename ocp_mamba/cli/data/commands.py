"""The commands under ``ocp-mamba data``: build, import, check and convert dataset files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
from tqdm import tqdm

from ocp_mamba.cli.data.build import build
from ocp_mamba.cli.options import InputError, eval_limits, eval_options
from ocp_mamba.data.analysis.leakage import LEARN_ALL, LeakReport
from ocp_mamba.data.analysis.leakage import check as check_leaks
from ocp_mamba.data.analysis.sample import evaluation_part
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.legacy.importer import import_legacy
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards.convert import shard, unshard, verify_shards
from ocp_mamba.data.shards.mapped import MappedDataset
from ocp_mamba.errors import DatasetError


@click.group(
    name="data",
    epilog="""
    \b
    Example:
      ocp-mamba data check ocp_training_9k.npz
    """,
)
def data() -> None:
    """Build dataset files, import older ones, and check them."""


data.add_command(build)


ALLOW_PICKLE = click.option(
    "--allow-pickle",
    is_flag=True,
    help="Open object arrays of an older file. They are pickles, and opening a pickle can run any "
    "code that its author put in it: only for files that you made yourself.",
)


@data.command(
    "import",
    epilog="Examples: ocp-mamba data import old.npz --out new.npz; "
    "ocp-mamba data import fused.npz --out new.npz --fused last --encoder-name my/encoder",
)
@click.argument("old", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .npz to write.")
@ALLOW_PICKLE
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Of the 70/15/15 split, if the file has none.",
)
@click.option(
    "--fused",
    type=click.Choice(["first", "last"]),
    help="Place of the 768-D vector in 784-D rows, if their norms do not show it.",
)
@click.option("--encoder-name", help="The encoder that made the vectors, kept in the file.")
def import_(
    old: Path,
    out: Path,
    allow_pickle: bool,
    seed: int,
    fused: str | None,
    encoder_name: str | None,
) -> None:
    """Turn OLD, an .npz of contexts and targets, into a dataset file.

    Prints what was found, repaired and dropped. docs/import.md lists the layouts.
    """
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist")
    if out.exists() and old.exists() and out.samefile(old):
        raise InputError(f"--out {out}: is the older file itself; name another file")
    try:
        dataset, report = import_legacy(
            old, allow_pickle=allow_pickle, seed=seed, fused=fused, encoder_name=encoder_name
        )
        dataset.save(out)
    except (DatasetError, OSError) as error:
        raise InputError(str(error)) from error
    click.echo(report.to_markdown())
    click.echo(f"\nWrote {out}, {out.stat().st_size / 1e6:.1f} MB")


@data.command(
    epilog="Examples: ocp-mamba data check ocp_training_9k.npz; "
    "ocp-mamba data check ocp_training_9k.npz --strict --json leaks.json"
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="File of the numbers.")
@click.option("--strict", is_flag=True, help="End with exit code 1 if a split leaks.")
@click.option("--track/--no-track", default=True, show_default=True,
              help="Log the report to MLflow.")  # fmt: skip
@eval_options
@ALLOW_PICKLE
def check(
    file: Path,
    json_path: Path | None,
    strict: bool,
    track: bool,
    allow_pickle: bool,
    **limits: int,
) -> None:
    """Report leaks between the splits of FILE, and faults of its bank; log them as a run.

    FILE is a dataset file, a folder of `data shard`, whose whole content is read and compared with
    its fingerprint, or an older .npz, which is imported for the check only. Train counts as all
    prefixes of its chains, the most that any training learns. If there is more data than the limits
    allow, a sample is compared with all chains. docs/import.md explains every number.
    """
    if json_path is not None and not json_path.parent.is_dir():
        raise InputError(f"--json {json_path}: the folder {json_path.parent} does not exist")
    try:
        dataset = load_dataset(file, allow_pickle, lambda text: click.echo(f"{text}\n"))
        if isinstance(dataset, MappedDataset):
            verify_shards(dataset, file)
        evaluated = evaluation_part(dataset, eval_limits(limits), progress=True)
        report = check_leaks(evaluated, min_context=LEARN_ALL)
        if json_path is not None:
            content = {
                "file": file.name,
                "fingerprint": dataset.fingerprint,
                "leaks": report.leaks,
                "warnings": report.warnings,
                "figures": report.figures(),
            }
            json_path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except (DatasetError, OSError) as error:
        raise InputError(str(error)) from error
    click.echo(report.to_markdown())
    if track:
        _track(dataset, file, report)
    if strict and report.leaks:
        raise click.exceptions.Exit(1)


def _track(dataset: Dataset, file: Path, report: LeakReport) -> None:
    from ocp_mamba.errors import TrackingError
    from ocp_mamba.jobs.common import track_check

    try:
        click.echo(f"\nlogged as run {track_check(dataset, file, report)}")
    except TrackingError as error:
        raise InputError(f"{error}; or give --no-track") from error


@data.command("shard", epilog="Example: ocp-mamba data shard ocp_training_9k.npz ocp_training_9k")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("folder", type=click.Path(path_type=Path))
def shard_(file: Path, folder: Path) -> None:
    """Turn FILE, a dataset file, into FOLDER, which training reads with flat memory.

    The content keeps its fingerprint. A float16 bank takes twice its room: its rows are kept as
    they are used.
    """
    _convert(shard, file, folder)


@data.command("unshard", epilog="Example: ocp-mamba data unshard ocp_training_9k back.npz")
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("file", type=click.Path(path_type=Path))
def unshard_(folder: Path, file: Path) -> None:
    """Turn FOLDER, one of `data shard`, into FILE, a dataset file of the same fingerprint."""
    _convert(unshard, folder, file)


def _convert(
    how: Callable[[Path, Path, Callable[[int], object]], str], old: Path, new: Path
) -> None:
    if not new.parent.is_dir():
        raise InputError(f"{new}: the folder {new.parent} does not exist")
    try:
        with tqdm(unit="B", unit_scale=True, desc=str(new)) as bar:
            fingerprint = how(old, new, bar.update)
    except (DatasetError, OSError) as error:
        raise InputError(str(error)) from error
    click.echo(f"Wrote {new}, fingerprint {fingerprint[:12]}")
