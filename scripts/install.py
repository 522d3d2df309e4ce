"""Make a virtual environment and install the project into it; `make` calls this.

The script uses only the standard library, so any Python 3.11 or newer can run it. It installs torch
first: on Linux the plain package brings gigabytes of CUDA libraries, so without an NVIDIA GPU the
script looks for a CPU build and prints each step. The versions are those of ``constraints.txt``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INDEX_VARIABLE = "TORCH_INDEX_URL"


class InstallError(Exception):
    """A step failed; the message says which one and what to do."""


def main() -> None:
    """Install the project, with the extras asked for, into the environment asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", type=Path, help="folder of the virtual environment")
    parser.add_argument("--extras", default="", help="extras of pyproject.toml, e.g. dev")
    parser.add_argument("--newest", action="store_true", help="use constraints.txt for torch only")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        python = make_environment(options.environment.absolute())
        install_torch(python, torch_pin(ROOT / "constraints.txt"))
        project = f"{ROOT}[{options.extras}]" if options.extras else str(ROOT)
        pins = [] if options.newest else ["-c", str(ROOT / "constraints.txt")]
        say(f"pip install {' '.join(pins)} -e {project} (a minute or two)")
        pip(python, "-q", *pins, "-e", project)
        if not options.newest:
            link_mlflow_environment(python, options.environment)
    except InstallError as error:
        sys.exit(f"install: {error}")
    except KeyboardInterrupt:
        sys.exit("install: interrupted; run the same command again to go on")
    say(f"done in {time.monotonic() - started:.0f} s: {options.environment}")


def say(message: str) -> None:
    """Print one step."""
    print(f"install: {message}", flush=True)


def make_environment(folder: Path) -> Path:
    """Return the Python of the environment in ``folder``; make the environment if it is missing.

    Raises:
        InstallError: Python cannot make an environment, or the one that is there is broken or old.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not folder.exists():
        say(f"a virtual environment in {folder} with Python {sys.version.split()[0]}")
        try:
            venv.create(folder, with_pip=True, prompt="ocp-mamba")
        except (subprocess.CalledProcessError, ImportError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise InstallError(
                f"{sys.executable} cannot make a virtual environment ({error}). On Debian and "
                "Ubuntu install the package python3-venv; or name another Python: "
                "make PYTHON=/path/to/python3.12 ..."
            ) from error
    check = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    if not python.exists() or subprocess.run([python, "-c", check], check=False).returncode:
        raise InstallError(
            f"{folder} holds no working environment of Python 3.11 or newer; "
            "remove it with `make clean` and try again"
        )
    return python


def torch_pin(constraints: Path) -> str:
    """Return the version that ``constraints.txt`` pins torch to.

    Raises:
        InstallError: it pins none.
    """
    for line in constraints.read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition(";")[0].partition("==")
        if name.strip() == "torch" and version:
            return version.strip()
    raise InstallError(f"{constraints} has no line `torch==VERSION`")


def install_torch(python: Path, version: str) -> None:
    """Install torch: from ``TORCH_INDEX_URL``, with CUDA for a GPU, or else a CPU build.

    Raises:
        InstallError: torch could not be installed.
    """
    installed = _ask(python, "from importlib.metadata import version; print(version('torch'))")
    if installed.partition("+")[0] == version:
        say(f"torch {installed} is already installed")
        return
    index = os.environ.get(INDEX_VARIABLE)
    if index:
        say(f"torch {version} from {INDEX_VARIABLE}={index}")
        pip(python, "--index-url", index, f"torch=={version}")
    elif sys.platform != "linux":
        say(f"torch {version} (the plain package has no CUDA libraries on {sys.platform})")
        pip(python, f"torch=={version}")
    elif _has_gpu():
        say(f"torch {version} with CUDA: nvidia-smi lists a GPU")
        pip(python, f"torch=={version}")
    else:
        _install_cpu_torch(python, version)


def _install_cpu_torch(python: Path, version: str) -> None:
    say("no NVIDIA GPU (nvidia-smi lists none): looking for torch's CPU build")
    say(f"  1. torch {version}+cpu from the package indexes and folders of pip's configuration")
    failure = _try([python, "-m", "pip", "install", "-q", f"torch=={version}+cpu"])
    if failure is None:
        return
    say(f"     not found: {failure}")
    say("  2. torch's own package index, through uv")
    pip(python, "-q", "uv")
    uv = [python, "-m", "uv", "pip", "install", "-q", "--python", python]
    failure = _try([*uv, "--torch-backend", "cpu", f"torch=={version}"])
    if failure is None:
        return
    say(f"     not found: {failure}")
    say(
        f"  3. WARNING: the plain torch {version}. On x86-64 it comes with CUDA libraries that this"
    )
    say("     machine cannot use, 2.7 GB of downloads. To avoid them stop here (Ctrl-C) and name a")
    say("     package index, or a folder, that has a CPU build of torch:")
    say(f"       make run {INDEX_VARIABLE}=https://...     or     PIP_FIND_LINKS=FOLDER make run")
    pip(python, f"torch=={version}")


def link_mlflow_environment(python: Path, folder: Path) -> None:
    """Let ``mlflow run .`` use the environment; without that, the install is still complete."""
    command = [python, ROOT / "scripts" / "link_mlflow_env.py", folder]
    if subprocess.run(command, check=False).returncode:
        say("that link is missing: `mlflow run .` needs pyenv, or --env-manager local")


def pip(python: Path, *arguments: str) -> None:
    """Run ``pip install`` with its output shown.

    Raises:
        InstallError: pip failed.
    """
    command = [str(python), "-m", "pip", "install", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise InstallError(f"failed: {' '.join(command)}")


def _try(command: list[str | Path]) -> str | None:
    """Run a command without output. Return None if it worked, else its line with the error."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("error", "\u00d7", "cause"))]
    return (errors or lines or [f"exit status {done.returncode}"])[-1]


def _ask(python: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], check=False, capture_output=True, text=True)
    return done.stdout.strip()


def _has_gpu() -> bool:
    program = shutil.which("nvidia-smi")
    if program is None:
        return False
    done = subprocess.run([program, "-L"], check=False, capture_output=True, text=True)
    return done.returncode == 0 and "GPU" in done.stdout


if __name__ == "__main__":
    main()
