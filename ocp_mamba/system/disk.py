"""Whether a file can be written, and whether the disk has room for it, before any work is done."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from ocp_mamba.errors import OutputError, first_line

PROBE_BYTES = 1 << 16
BYTES_A_PARAMETER = 40
"""State, best epoch, last epoch and shared output, the first two twice while they are replaced."""


def require_writable(output: Path) -> None:
    """Write a probe file beside an output and remove it again.

    Raises:
        OutputError: the output is a folder, or its folder cannot be made or written.
    """
    if output.is_dir():
        raise OutputError(f"--output {output} is a folder; name the .pt file to write")
    try:
        probe_folder(output.parent, output.name)
    except OSError as error:
        raise OutputError(
            f"--output {output}: its folder cannot be written ({first_line(error)}); choose "
            "another one, or free space there"
        ) from error


def probe_folder(folder: Path, name: str) -> None:
    """Make a folder where there is none, write a probe file in it, and remove that again.

    Args:
        folder: to write in.
        name: of the file that is to be written there later. The probe has the name of a temporary
            file of it, so that what a kill leaves of it is cleaned up too.

    Raises:
        OSError: the folder cannot be made or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".{name}.{os.getpid()}.part"
    try:
        with probe.open("xb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def require_space(output: Path, parameters: int) -> None:
    """Refuse a disk on which a model of that many parameters would fill up in training.

    Raises:
        OutputError: says what is needed and what is free.
    """
    free, needed = shutil.disk_usage(output.parent).free, BYTES_A_PARAMETER * parameters
    if free < needed:
        raise OutputError(
            f"--output {output}: a training of {parameters:,} parameters writes up to "
            f"{needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free; free space, or choose "
            "another folder"
        )
