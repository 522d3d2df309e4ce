"""``mlflow run`` as a person types it, in a folder, with this environment's programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def mlflow_run(folder: Path, *arguments: str) -> str:
    """Run ``mlflow run ARGUMENTS --env-manager local`` in a folder; returns what it printed."""
    programs = str(Path(sys.executable).parent)
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    return mlflow_run_with({"PATH": path}, folder, *arguments, "--env-manager", "local")


def mlflow_run_with(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """Run ``mlflow run ARGUMENTS`` in a folder with changed variables; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "run", *arguments],
        cwd=folder,
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
