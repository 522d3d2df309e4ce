"""The `.npz` container: the names of its arrays, and writing one whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.errors import DatasetError
from ocp_mamba.system.files import atomic_write


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
    """Write an `.npz` whole or not at all; a failure leaves an older file as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
