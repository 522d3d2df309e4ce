"""Between an `.npz` and a folder of mapped arrays, a chunk at a time in both directions."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.dataset import SPLITS, is_dataset_file, parse_meta, to_float16, unit_rows
from ocp_mamba.data.fingerprint import chunks, fingerprint_of
from ocp_mamba.data.npz import Header, Npz
from ocp_mamba.data.shards.mapped import (
    ARRAYS,
    FORMAT,
    HEADER,
    META,
    OLD_FORMAT,
    MappedDataset,
    checksum,
    file_name,
    is_shards,
    open_shards,
    read_meta,
)
from ocp_mamba.data.validation import check_bank, check_chains
from ocp_mamba.errors import DatasetError, first_line, shown
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
        written = open_shards(part)
        check_content(written)
        found = fingerprint_of(written, _stored(bank_dtype))
        if fingerprint not in (None, found):
            raise DatasetError(
                f"content has the fingerprint {found}, {shown(fingerprint)} was stated"
            )
        listed["fingerprint"] = found
        listed["checksum"] = checksum(listed)
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
    try:
        return _shard(Npz(source), folder, progress)
    except DatasetError as error:
        raise DatasetError(f"dataset file {source}: {error}") from error


def _shard(file: Npz, folder: Path, progress: Progress) -> str:
    meta = parse_meta(file.array("meta"))
    fingerprint = meta.pop("fingerprint", None)
    names = [name for name in ARRAYS if name in file.keys]
    for name in names:
        _check_header(name, file.header(name))
    arrays = {name: _counted(file.chunks(name), progress) for name in names}
    if "chain_first" not in names:
        arrays["chain_first"] = (
            np.full(len(chunk), MIN_CONTEXT, np.uint8) for chunk in file.chunks("split")
        )
    bank_dtype = str(file.header("bank").dtype)
    return write_shards(folder, arrays, meta, bank_dtype=bank_dtype, fingerprint=fingerprint)


def _check_header(name: str, header: Header) -> None:
    """Refuse an array of a dtype or of rows that the folder's array cannot have."""
    dtypes, row = ARRAYS[name]
    if name == "bank":
        dtypes = ("<f2", *dtypes)
    if not header.dtype.str.startswith(dtypes) or header.shape[1:] != row or not header.shape:
        wanted = ", ".join(("n", *map(str, row)))
        raise DatasetError(f"key {name!r}: {header} found, {' or '.join(dtypes)} ({wanted}) wanted")


def _renew(source: Path, folder: Path, progress: Progress) -> str:
    """Write a folder of the older format, with several files an array, in today's format."""
    listed = read_meta(source)
    if listed["format"] != OLD_FORMAT:
        raise DatasetError(f"{source}: is such a folder already")

    def parts(name: str) -> Iterator[np.ndarray]:
        rows = listed["arrays"][name].get("rows")
        if not isinstance(rows, list):
            raise DatasetError(f"{source / META}: array {name!r}: a list of rows wanted")
        for number in range(len(rows)):
            path = source / f"{name}-{number:05d}.npy"
            try:
                yield from chunks(np.lib.format.open_memmap(path, mode="r"))
            except Exception as error:  # a damaged header makes numpy raise anything
                raise DatasetError(f"{path} cannot be read: {first_line(error)}") from error

    arrays = {name: _counted(parts(name), progress) for name in listed["arrays"] if name in ARRAYS}
    return write_shards(
        folder,
        arrays,
        listed["meta"],
        bank_dtype=listed["bank_dtype"],
        fingerprint=listed["fingerprint"],
    )


def verify_shards(data: MappedDataset, folder: Path) -> None:
    """Read the whole content of a folder, a chunk at a time, and check it.

    Raises:
        DatasetError: a value is not valid, or the content has another fingerprint than the folder's
            ``meta.json`` says.
    """
    try:
        check_content(data)
        found = fingerprint_of(data, _stored(data.bank_dtype))
        if found != data.fingerprint:
            raise DatasetError(
                f"content has the fingerprint {found}, {META} says {data.fingerprint}: the folder "
                "was damaged or edited; copy it or write it again"
            )
    except DatasetError as error:
        raise DatasetError(f"dataset folder {folder}: {error}") from error


def check_content(data: MappedDataset) -> None:
    """Check every array of a folder as those of a file are checked.

    Raises:
        DatasetError: names the key, what was found and what is wanted.
    """
    start = 0
    for rows in chunks(data.bank):
        check_bank(rows, data.texts[start : start + len(rows)], data.bank_dtype)
        start += len(rows)
        data.release()
    check_chains(data, len(SPLITS))
    data.release()


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
    verify_shards(data, folder)
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


def _write_header(member: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        member, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )


def _stored(bank_dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """The conversion of a folder's unit rows to the precision of the file."""
    return np.ascontiguousarray if bank_dtype == "float32" else to_float16
