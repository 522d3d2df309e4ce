"""The `.npz` container: which arrays it holds, and how one is written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.errors import DatasetError


def npz_keys(path: str | Path) -> list[str]:
    """Names of the arrays in an `.npz`, in file order.

    Raises:
        DatasetError: there is no such file, or it is not a whole zip of `.npy` members.
    """
    path = Path(path)
    if not path.is_file():
        raise DatasetError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError) as error:
        raise DatasetError(
            f"{path}: not a whole .npz file ({error}); it is truncated or of another kind: "
            "copy or build it again"
        ) from error
    strange = [name for name in names if not name.endswith(".npy")]
    if strange:
        raise DatasetError(f"{path}: holds {strange[:5]}, which are no .npy arrays")
    return [name.removesuffix(".npy") for name in names]


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an `.npz` whole or not at all: what fails leaves an older file as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o666 & ~umask)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
