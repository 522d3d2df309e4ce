"""Between an `.npz` and a folder of mapped arrays, a chunk at a time in both directions."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.dataset import is_dataset_file, parse_meta, to_float16, unit_rows
from ocp_mamba.data.fingerprint import chunks, fingerprint_of
from ocp_mamba.data.npz import npz_keys
from ocp_mamba.data.shards.mapped import (
    ARRAYS,
    FORMAT,
    HEADER,
    META,
    OLD_FORMAT,
    file_name,
    is_shards,
    open_shards,
    read_meta,
)
from ocp_mamba.errors import DatasetError
from ocp_mamba.system.files import atomic_write, sync, sync_folder

WRITE_BYTES = 1 << 16
"""Bytes written at once. Linux caches what is written at once as one block of up to 2 MiB, and maps
the whole block where one row of it is read: resident memory would not stay flat."""

Progress = Callable[[int], object]


class ArrayWriter:
    """Writes one array of a folder, chunk by chunk."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, row: tuple[int, ...]) -> None:
        """Write the array ``name`` of this dtype, its rows of shape ``row``, into ``folder``."""
        self._dtype, self._row, self._rows = dtype, row, 0
        self._file = (folder / file_name(name)).open("wb")
        self._file.write(bytes(HEADER))

    def write(self, rows: np.ndarray) -> None:
        """Add rows."""
        data = np.ascontiguousarray(rows, dtype=self._dtype).reshape(-1).view(np.uint8)
        for start in range(0, len(data), WRITE_BYTES):
            self._file.write(data[start : start + WRITE_BYTES].data)
        self._rows += len(rows)

    def close(self) -> dict[str, Any]:
        """Write the header; returns the array's entry in ``meta.json``."""
        with self._file as file:
            file.seek(0)
            file.write(_header(self._dtype, (self._rows, *self._row)))
            sync(file)
        return {"dtype": self._dtype.str, "row": list(self._row), "rows": self._rows}


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header of a `.npy` file, version 1.0, filled up to `HEADER` bytes."""
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    room = HEADER - 10
    return b"\x93NUMPY\x01\x00" + room.to_bytes(2, "little") + f"{text:<{room - 1}}\n".encode()


def write_shards(
    folder: Path,
    arrays: dict[str, Iterator[np.ndarray]],
    meta: dict[str, Any],
    *,
    bank_dtype: str,
    fingerprint: str | None = None,
) -> str:
    """Write a folder of mapped arrays whole or not at all; returns its fingerprint.

    Args:
        folder: the folder to make.
        arrays: chunks of each array; rows of the bank are normalized.
        meta: the dataset's ``meta``.
        bank_dtype: precision of the bank in an `.npz` of the same content.
        fingerprint: the fingerprint that the content must have; None accepts any.

    Raises:
        DatasetError: the folder exists, an array is empty, or the content has another fingerprint.
        OSError: the folder cannot be written.
    """
    if folder.exists():
        raise DatasetError(f"{folder} exists already; name another folder")
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        listed: dict[str, Any] = {"format": FORMAT, "meta": meta, "bank_dtype": bank_dtype}
        listed["arrays"] = {name: _write_array(part, name, arrays[name]) for name in arrays}
        listed["fingerprint"] = ""
        (part / META).write_text(json.dumps(listed), encoding="utf-8")
        found = fingerprint_of(open_shards(part), _stored(bank_dtype))
        if fingerprint not in (None, found):
            raise DatasetError(f"content has the fingerprint {found}, {fingerprint} was stated")
        listed["fingerprint"] = found
        with atomic_write(part / META) as file:
            file.write(json.dumps(listed, indent=1).encode())
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return found


def _write_array(folder: Path, name: str, parts: Iterator[np.ndarray]) -> dict[str, Any]:
    """Write one array; returns its entry in ``meta.json``."""
    rows = (unit_rows(part) for part in parts) if name == "bank" else parts
    first = next(rows, None)
    if first is None:
        raise DatasetError(f"array {name!r} is empty")
    writer = ArrayWriter(folder, name, first.dtype, ARRAYS[name][1])
    try:
        for part in chain([first], rows):
            writer.write(part)
    finally:
        entry = writer.close()
    return entry


def shard(source: Path, folder: Path, progress: Progress = lambda done: None) -> str:
    """Turn a dataset file into a folder of mapped arrays; returns the fingerprint of both.

    Args:
        source: the `.npz`, or a folder that an older version wrote.
        folder: the folder to make.
        progress: called with the bytes of each chunk that was read.

    Raises:
        DatasetError: the source is no dataset file or is damaged, or the folder exists.
        OSError: the folder cannot be written.
    """
    if is_shards(source):
        return _renew(source, folder, progress)
    if not is_dataset_file(source):
        raise DatasetError(
            f"{source}: an older layout; turn it into a dataset file first, with "
            "`ocp-mamba data import`"
        )
    keys = npz_keys(source)
    meta = parse_meta(next(read_member(source, "meta")))
    fingerprint = meta.pop("fingerprint", None)
    arrays = {
        name: _counted(read_member(source, name), progress) for name in ARRAYS if name in keys
    }
    if "chain_first" not in keys:
        arrays["chain_first"] = (
            np.full(len(chunk), MIN_CONTEXT, np.uint8) for chunk in read_member(source, "split")
        )
    bank_dtype = str(next(read_member(source, "bank")).dtype)
    try:
        return write_shards(folder, arrays, meta, bank_dtype=bank_dtype, fingerprint=fingerprint)
    except DatasetError as error:
        raise DatasetError(f"dataset file {source}: {error}") from error


def _renew(source: Path, folder: Path, progress: Progress) -> str:
    """Write a folder of the older format, with several files an array, in today's format."""
    listed = read_meta(source)
    if listed["format"] != OLD_FORMAT:
        raise DatasetError(f"{source}: is such a folder already")

    def parts(name: str) -> Iterator[np.ndarray]:
        for number in range(len(listed["arrays"][name]["rows"])):
            path = source / f"{name}-{number:05d}.npy"
            try:
                yield from chunks(np.load(path, mmap_mode="r"))
            except (OSError, ValueError, EOFError) as error:
                raise DatasetError(f"{path} cannot be read: {error}") from error

    arrays = {name: _counted(parts(name), progress) for name in listed["arrays"] if name in ARRAYS}
    return write_shards(
        folder,
        arrays,
        listed["meta"],
        bank_dtype=listed["bank_dtype"],
        fingerprint=listed["fingerprint"],
    )


def _counted(parts: Iterator[np.ndarray], progress: Progress) -> Iterator[np.ndarray]:
    for part in parts:
        progress(part.nbytes)
        yield part


def unshard(folder: Path, out: Path, progress: Progress = lambda done: None) -> str:
    """Turn a folder of mapped arrays into a dataset file; returns the fingerprint of both.

    Raises:
        DatasetError: the folder is not one of mapped arrays, or is damaged.
        OSError: the file cannot be written.
    """
    data = open_shards(folder)
    stored = _stored(data.bank_dtype)
    keys = [name for name in ARRAYS if getattr(data, name) is not None]
    if all((chunk == MIN_CONTEXT).all() for chunk in chunks(data.chain_first)):
        keys.remove("chain_first")
    with atomic_write(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in keys:
            array = getattr(data, name)
            convert = stored if name == "bank" else (lambda rows: rows)
            dtype = convert(array[:1]).dtype
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_header(member, dtype, array.shape)
                for chunk in chunks(array):
                    member.write(np.ascontiguousarray(convert(chunk)).data)
                    progress(chunk.nbytes)
                    data.release()
        meta = json.dumps(
            data.meta | {"fingerprint": data.fingerprint}, sort_keys=True, ensure_ascii=False
        )
        with archive.open("meta.npy", "w") as member:
            np.lib.format.write_array(member, np.array(meta))
    return data.fingerprint


def read_member(path: Path, key: str) -> Iterator[np.ndarray]:
    """Chunks of one array of an `.npz`, along its first axis; its checksum is compared at the end.

    Raises:
        DatasetError: the member is missing, damaged, or no plain array.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                version, np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read(member)
            if dtype.hasobject or (fortran and len(shape) > 1):
                raise ValueError(f"{dtype} in {'Fortran' if fortran else 'C'} order found")
            row = shape[1:]
            row_bytes = dtype.itemsize * int(np.prod(row, dtype=np.int64))
            left = shape[0] if shape else 1
            while left:
                rows = min(left, max(1, (1 << 25) // max(1, row_bytes)))
                data = member.read(rows * row_bytes)
                yield np.frombuffer(data, dtype).reshape((rows, *row) if shape else ())
                left -= rows
            member.read()  # to the end, where the checksum is compared
    except (KeyError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DatasetError(f"{path}: key {key!r} cannot be read: {error}") from error


def _write_header(member: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        member, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )


def _stored(bank_dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """The conversion of a folder's unit rows to the precision of the file."""
    return np.ascontiguousarray if bank_dtype == "float32" else to_float16
