"""Let ``mlflow run .`` use the environment that `make install` made; `make` calls this.

Without ``--env-manager``, MLflow looks for an environment of its own for this project: a folder
named by a hash of ``python_env.yaml``, ``constraints.txt`` and the version of Python. Where the
folder exists, MLflow activates it; where it does not, MLflow needs pyenv to make it. This script
makes that folder, with one link in it: ``bin/activate``, which leads to the environment's own.

    python scripts/link_mlflow_env.py .venv             # lay the link, and remove an older one
    python scripts/link_mlflow_env.py .venv --remove    # remove it

It runs with the environment's Python, but ``--remove`` needs the standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTEAD = "`mlflow run .` then needs pyenv, or --env-manager local"


def main() -> None:
    """Lay the link or remove it. A link that cannot be laid is a message, not a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="folder of the virtual environment")
    parser.add_argument("--remove", action="store_true", help="remove the link")
    options = parser.parse_args()
    activate = options.environment.absolute() / "bin" / "activate"
    if options.remove:
        remove(activate, default_root())
    else:
        lay(activate)


def say(message: str) -> None:
    """Print one step."""
    print(f"mlflow run: {message}", flush=True)


def lay(activate: Path) -> None:
    """Link MLflow's folder for this project to ``activate``, and remove links for older names.

    A folder that something else made is left as it is.
    """
    if not activate.exists():
        say(f"there is no {activate}; {INSTEAD}")
        return
    folder = mlflow_folder(ROOT)
    if folder is None:
        return
    remove(activate, folder.parent, keep=folder)
    link = folder / "bin" / "activate"
    if target(link) == activate:
        return
    if link.is_symlink() and not link.exists():
        link.unlink()  # the environment that it led to is gone
    elif folder.exists():
        say(f"{folder} is there already and stays as it is; `mlflow run .` uses it")
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(activate)
    say(f"`mlflow run .` uses {activate.parent.parent}, by a link in {folder}")


def remove(activate: Path, root: Path, keep: Path | None = None) -> None:
    """Remove every folder of ``root`` that is nothing but a link to ``activate``."""
    for folder in linked_folders(activate, root):
        if folder == keep:
            continue
        (folder / "bin" / "activate").unlink()
        try:
            (folder / "bin").rmdir()
            folder.rmdir()
        except OSError:
            say(f"removed the link from {folder}, which holds other files too")
        else:
            say(f"removed {folder}")


def linked_folders(activate: Path, root: Path) -> Iterator[Path]:
    """The folders of ``root`` whose ``bin/activate`` is a link to ``activate``."""
    if root.is_dir():
        for folder in sorted(root.iterdir()):
            if target(folder / "bin" / "activate") == activate:
                yield folder


def target(link: Path) -> Path | None:
    """Where a link leads; None where there is no link."""
    return Path(os.readlink(link)) if link.is_symlink() else None


def default_root() -> Path:
    """The folder of MLflow's environments, found without MLflow."""
    return Path(os.environ.get("MLFLOW_ENV_ROOT") or Path.home() / ".mlflow" / "envs")


def mlflow_folder(project: Path) -> Path | None:
    """The folder in which MLflow looks for a project's environment, or None with a message.

    MLflow has no public function for it, so another version of MLflow may have none of these.
    """
    try:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when MLflow is imported
        from mlflow.utils.environment import _PythonEnv
        from mlflow.utils.virtualenv import _get_mlflow_virtualenv_root, _get_virtualenv_name

        environment = _PythonEnv.from_yaml(project / "python_env.yaml")
        return Path(_get_mlflow_virtualenv_root()) / _get_virtualenv_name(environment, project)
    except (ImportError, AttributeError, TypeError) as error:
        say(f"this version of MLflow names its environments in another way ({error}); {INSTEAD}")
        return None


if __name__ == "__main__":
    sys.exit(main())
