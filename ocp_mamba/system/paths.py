"""Resolve the relative paths that a command is given, also when MLflow has changed the folder.

``mlflow run ../project -P data=mine.npz`` starts the command in the project's folder, but the
person who typed it means a file in their own working folder. That is the working folder of the
``mlflow run`` process, an ancestor of this one.
"""

from __future__ import annotations

from pathlib import Path

import psutil

from ocp_mamba.errors import DataNotFoundError
from ocp_mamba.system.process import mlflow_run_ancestor

PROJECT_FOLDER = Path(__file__).resolve().parents[2]
"""The checkout's folder; meaningless, and never a match, in an installed wheel."""

SHARDS_LIST = "meta.json"
"""A file that a dataset's folder of shards has, and no other folder should have."""


def caller_folder() -> Path:
    """Return the folder in which the person typed the command.

    This is the working folder of the nearest ``mlflow run`` ancestor of this process, or this
    process's own where there is none.
    """
    ancestor = mlflow_run_ancestor()
    if ancestor is not None:
        try:
            return Path(ancestor.cwd())
        except (psutil.Error, OSError):
            pass  # it has ended, or the system hides its folder: only our own is known
    return Path.cwd()


DATASET_HINT = (
    "`ocp-mamba data build --help` makes a dataset from chains, `ocp-mamba data import --help` "
    "turns an older npz into one."
)
MODEL_HINT = (
    "`ocp-mamba train --output FILE.pt` writes one; models:/NAME@ALIAS, runs:/ID/FILE.pt and "
    "baseline:NAME name others."
)
"""What to do about a dataset, and about a model, that does not exist."""


def resolve_file(value: str | Path, hint: str = DATASET_HINT) -> Path:
    """Return the absolute path of a file, or of a dataset's folder of shards, that exists.

    A relative path is searched in the caller's folder, then the current one, then the project's.

    Raises:
        DataNotFoundError: it is in none of them; the message lists them.
    """
    path = Path(value).expanduser()
    folders = dict.fromkeys([caller_folder(), Path.cwd(), PROJECT_FOLDER])
    candidates = [folder / path for folder in folders] if not path.is_absolute() else [path]
    for candidate in candidates:
        if candidate.is_file() or (candidate / SHARDS_LIST).is_file():
            return candidate.resolve()
    looked = "\n".join(
        f"  {c} {'is a folder' if c.is_dir() else 'does not exist'}" for c in candidates
    )
    raise DataNotFoundError(
        f"file {str(value)!r} not found; looked for\n{looked}\n"
        f"Give the path of a file that exists. {hint}"
    )


def resolve_output(value: str | Path) -> Path:
    """Return the absolute path to write to; a relative one starts at the caller's folder."""
    return (caller_folder() / Path(value).expanduser()).resolve()
