"""The `.npz` container: reading arrays out of a file that may be forged, and writing one whole.

A file of 14 MB can declare arrays of 6 GB. So everything that it declares, in the zip's directory
and in the headers of its arrays, is checked before any content is read.
"""

from __future__ import annotations

import math
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from ocp_mamba.errors import DatasetError, first_line, shown
from ocp_mamba.system.files import atomic_write

LIMIT_VARIABLE = "OCP_MAMBA_NPZ_LIMIT_GIB"
"""Environment variable: GiB that the arrays of an `.npz` may have in memory together."""

ALWAYS_ALLOWED = 256 << 20
"""Bytes that the arrays of any file may have."""

ALLOWED_RATIO = 8
"""How many times the size of its file the arrays may have beyond that. Real vectors take about
twice the room of their compressed file, contexts that are padded with zeros up to five times."""

MAX_MEMBERS = 1000
CHUNK_BYTES = 1 << 25


@dataclass(frozen=True)
class Header:
    """Shape and dtype of an array, read without its content."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool = False

    def __str__(self) -> str:
        """Dtype and shape, for messages."""
        return f"{self.dtype} {self.shape}"


class Npz:
    """An `.npz` whose directory is checked: names, sizes and compression.

    Attributes:
        path: the file.
        keys: names of its arrays, in file order.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the directory of the zip.

        Raises:
            DatasetError: there is no such file, it is not a whole zip of `.npy` members, or what it
                declares is larger than the limit.
        """
        self.path = Path(path)
        if not self.path.is_file():
            raise DatasetError(f"{path}: no such file")
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
        except Exception as error:  # a damaged directory makes zipfile raise anything
            raise DatasetError(
                f"{path}: not a whole .npz file ({first_line(error)}); it is truncated or of "
                "another kind: copy or build it again"
            ) from error
        self._check_names([member.filename for member in members])
        self._check_sizes(members)
        self._sizes = {m.filename.removesuffix(".npy"): m.file_size for m in members}
        self._headers: dict[str, Header] = {}
        self.keys = list(self._sizes)

    def header(self, key: str) -> Header:
        """Return shape and dtype of an array.

        Raises:
            DatasetError: there is no such array, or its header cannot be read or declares another
                size than the zip's directory.
        """
        if key not in self._headers:
            with self._member(key, "its header cannot be read") as member:
                header = _read_header(member)
                _check_size(header, self._sizes[key] - member.tell())
            self._headers[key] = header
        return self._headers[key]

    def array(self, key: str) -> np.ndarray:
        """Return an array.

        Raises:
            DatasetError: as `header`, or the content is damaged or an object array.
        """
        self.header(key)
        with self._member(key) as member:
            array: np.ndarray = np.lib.format.read_array(member, allow_pickle=False)
            member.read()  # to the end, where the checksum is compared
        return array

    def chunks(self, key: str) -> Iterator[np.ndarray]:
        """Yield an array in chunks along its first axis; its checksum is compared at the end.

        Raises:
            DatasetError: as `array`, or the array is in Fortran's order.
        """
        header = self.header(key)
        row = header.shape[1:]
        row_bytes = header.dtype.itemsize * math.prod(row)
        left = header.shape[0] if header.shape else 1
        with self._member(key) as member:
            _read_header(member)
            if header.dtype.hasobject or (header.fortran and len(header.shape) > 1):
                order = "Fortran" if header.fortran else "C"
                raise ValueError(f"{header.dtype} in {order} order found")
            while left:
                rows = min(left, max(1, CHUNK_BYTES // max(1, row_bytes)))
                data = member.read(rows * row_bytes)
                shape = (rows, *row) if header.shape else ()
                yield np.frombuffer(data, header.dtype).reshape(shape)
                left -= rows
            member.read()

    @contextmanager
    def _member(self, key: str, what: str = "it cannot be read") -> Iterator[IO[bytes]]:
        """Open an array's member; whatever goes wrong becomes an error that names the key."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{key}.npy") as member:
                yield member
        except Exception as error:  # a damaged member makes numpy and zipfile raise anything
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(
                f"{self.path}: key {key!r}: {what} ({type(error).__name__}: {first_line(error)}); "
                "the file is damaged: copy or make it again"
            ) from error

    def _check_names(self, names: list[str]) -> None:
        if len(names) > MAX_MEMBERS:
            raise DatasetError(
                f"{self.path}: holds {len(names):,} members, {MAX_MEMBERS:,} at most wanted"
            )
        strange = [name for name in names if not name.endswith(".npy")]
        if strange:
            raise DatasetError(f"{self.path}: holds {shown(strange)}, which are no .npy arrays")
        outside = [n for n in names if n.startswith("/") or ".." in PurePosixPath(n).parts]
        if outside:
            raise DatasetError(f"{self.path}: holds {shown(outside)}, names outside of the file")
        twice = sorted({n.removesuffix(".npy") for n in names if names.count(n) > 1})
        if twice:
            raise DatasetError(f"{self.path}: holds the keys {shown(twice)} more than once")

    def _check_sizes(self, members: list[zipfile.ZipInfo]) -> None:
        for member in members:
            plain = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if not plain or member.flag_bits & 1:
                raise DatasetError(
                    f"{self.path}: key {member.filename.removesuffix('.npy')!r} is encrypted, or "
                    "compressed in a way that numpy does not write"
                )
        declared, size = sum(member.file_size for member in members), self.path.stat().st_size
        allowed = _allowed(size)
        if declared > allowed:
            raise DatasetError(
                f"{self.path}: declares arrays of {declared / 2**30:,.1f} GiB in a file of "
                f"{size / 2**30:,.3f} GiB, {allowed / 2**30:,.2f} GiB are allowed. If the file is "
                f"yours and right, set the environment variable {LIMIT_VARIABLE} to the GiB that "
                "you allow"
            )


def _allowed(size: int) -> int:
    """Bytes that the arrays of a file of some size may have together."""
    text = os.environ.get(LIMIT_VARIABLE, "")
    if not text:
        return max(ALWAYS_ALLOWED, ALLOWED_RATIO * size)
    try:
        return int(float(text) * 2**30)
    except (ValueError, OverflowError) as error:
        raise DatasetError(f"{LIMIT_VARIABLE} is {text!r}, a number of GiB wanted") from error


def _read_header(member: IO[bytes]) -> Header:
    version = np.lib.format.read_magic(member)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = read(member)
    return Header(shape, dtype, fortran)


def _check_size(header: Header, room: int) -> None:
    """Refuse a header that declares another size than its member has for the content, in bytes."""
    if header.dtype.hasobject:  # a pickle, of any size
        return
    count = math.prod(header.shape)
    wanted = count * header.dtype.itemsize
    empty = count > 0 and header.dtype.itemsize == 0
    if wanted != room or empty or any(n < 0 for n in header.shape):
        raise ValueError(f"{header} takes {wanted:,} bytes, and the member has {room:,}")


def npz_keys(path: str | Path) -> list[str]:
    """Names of the arrays in an `.npz`, in file order.

    Raises:
        DatasetError: as `Npz`.
    """
    return Npz(path).keys


def write_npz(path: Path, arrays: dict[str, Any]) -> None:
    """Write an `.npz` whole or not at all; a failure leaves an older file as it was.

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    with atomic_write(path) as file:
        np.savez_compressed(file, **arrays)
