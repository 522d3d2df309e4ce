"""Make a virtual environment and install the project into it; `make` calls this.

Nothing but the standard library is used, so any Python 3.11 or newer can run it. torch comes
first: on Linux the plain package brings gigabytes of CUDA libraries, so without an NVIDIA GPU a CPU
build is looked for, each step said aloud. The versions are those of ``constraints.txt``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
import tomllib
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
    parser.add_argument("--newest", action="store_true", help="leave constraints.txt out")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        python = make_environment(options.environment.absolute())
        install_torch(python, torch_pin(ROOT / "pyproject.toml"))
        project = f"{ROOT}[{options.extras}]" if options.extras else str(ROOT)
        pins = [] if options.newest else ["-c", str(ROOT / "constraints.txt")]
        say(f"pip install {' '.join(pins)} -e {project} (a minute or two)")
        pip(python, "-q", *pins, "-e", project)
    except InstallError as error:
        sys.exit(f"install: {error}")
    except KeyboardInterrupt:
        sys.exit("install: stopped; the same command goes on from here")
    say(f"done in {time.monotonic() - started:.0f} s: {options.environment}")


def say(message: str) -> None:
    """Print one step."""
    print(f"install: {message}", flush=True)


def make_environment(folder: Path) -> Path:
    """Return the interpreter of the environment in ``folder``, made if it is not there.

    Raises:
        InstallError: Python cannot make environments, or the folder holds a broken or too old one.
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


def torch_pin(pyproject: Path) -> str:
    """Return the version that pyproject.toml pins torch to.

    Raises:
        InstallError: it pins none.
    """
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        name, _, version = requirement.partition("==")
        if name.strip() == "torch" and version:
            return version.strip()
    raise InstallError(f"{pyproject} has no dependency `torch==VERSION`")


def install_torch(python: Path, version: str) -> None:
    """Install torch: an index that was named, a CUDA build for a GPU, else a CPU build.

    Raises:
        InstallError: no way to get torch worked.
    """
    installed = _ask(python, "from importlib.metadata import version; print(version('torch'))")
    if installed.partition("+")[0] == version:
        say(f"torch {installed} is there already")
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
    say("no NVIDIA GPU (nvidia-smi lists none), so torch's CPU build is wanted")
    say(f"  1. torch {version}+cpu from where pip is configured to look")
    failure = _try([python, "-m", "pip", "install", "-q", f"torch=={version}+cpu"])
    if failure is None:
        return
    say(f"     not there: {failure}")
    say("  2. torch's own package index, which the uv program knows")
    pip(python, "-q", "uv")
    uv = [python, "-m", "uv", "pip", "install", "-q", "--python", python]
    failure = _try([*uv, "--torch-backend", "cpu", f"torch=={version}"])
    if failure is None:
        return
    say(f"     not there: {failure}")
    say(
        f"  3. WARNING: the plain torch {version}. On x86-64 it comes with CUDA libraries that this"
    )
    say("     machine cannot use, 2.7 GB of downloads. To avoid them stop here (Ctrl-C) and name a")
    say("     package index, or a folder, that has a CPU build of torch:")
    say(f"       make run {INDEX_VARIABLE}=https://...     or     PIP_FIND_LINKS=FOLDER make run")
    pip(python, f"torch=={version}")


def pip(python: Path, *arguments: str) -> None:
    """Run ``pip install`` with its output shown.

    Raises:
        InstallError: pip failed.
    """
    command = [str(python), "-m", "pip", "install", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise InstallError(f"failed: {' '.join(command)}")


def _try(command: list[str | Path]) -> str | None:
    """Run a command quietly; None if it worked, else the line that says why not."""
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
