"""Between an `.npz` and a folder of shards, a chunk at a time in both directions."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    ROW_STEP,
    open_shards,
    shard_name,
)
from ocp_mamba.errors import DatasetError

SHARD_BYTES = 1 << 28

Progress = Callable[[int], object]


class ShardWriter:
    """Writes one array, rows as they come, into shards of one size."""

    def __init__(self, folder: Path, name: str, dtype: np.dtype, row: tuple[int, ...]) -> None:
        """Write the array ``name`` of rows ``row`` and this dtype into ``folder``."""
        self._folder, self._name, self._dtype, self._row = folder, name, dtype, row
        row_bytes = dtype.itemsize * int(np.prod(row, dtype=np.int64))
        self._limit = max(1, SHARD_BYTES // max(1, row_bytes * ROW_STEP)) * ROW_STEP
        self._rows: list[int] = []
        self._file: IO[bytes] | None = None

    def write(self, rows: np.ndarray) -> None:
        """Add rows."""
        rows = np.ascontiguousarray(rows, dtype=self._dtype)
        while len(rows):
            if self._file is None or self._rows[-1] == self._limit:
                self._next()
            assert self._file is not None
            taken = rows[: self._limit - self._rows[-1]]
            self._file.write(taken.data)
            self._rows[-1] += len(taken)
            rows = rows[len(taken) :]

    def close(self) -> dict[str, Any]:
        """End the last shard; returns what ``meta.json`` says of the array."""
        self._end()
        return {"dtype": self._dtype.str, "row": list(self._row), "rows": self._rows}

    def _next(self) -> None:
        self._end()
        path = self._folder / shard_name(self._name, len(self._rows))
        self._file = path.open("wb")
        self._file.write(bytes(HEADER))
        self._rows.append(0)

    def _end(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.write(_header(self._dtype, (self._rows[-1], *self._row)))
            self._file.close()
            self._file = None


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The head of a `.npy` file, version 1.0, filled up to `HEADER` bytes."""
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
    """Write a folder of shards whole or not at all; returns its fingerprint.

    Args:
        folder: to make.
        arrays: chunks of each array; the bank's are brought to unit rows.
        meta: the dataset's.
        bank_dtype: precision of the bank in an `.npz` of the same content.
        fingerprint: what the content must have; None takes what it has.

    Raises:
        DatasetError: the folder exists, an array is empty, or the content has another fingerprint.
    """
    if folder.exists():
        raise DatasetError(f"{folder} exists already; name another folder")
    part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part"))
    try:
        listed: dict[str, Any] = {"format": FORMAT, "meta": meta, "bank_dtype": bank_dtype}
        listed |= {"arrays": {}, "fingerprint": ""}
        for name, chain_chunks in arrays.items():
            writer: ShardWriter | None = None
            for chunk in chain_chunks:
                chunk = unit_rows(chunk) if name == "bank" else chunk
                writer = writer or ShardWriter(part, name, chunk.dtype, ARRAYS[name][1])
                writer.write(chunk)
            if writer is None:
                raise DatasetError(f"array {name!r} is empty")
            listed["arrays"][name] = writer.close()
        (part / META).write_text(json.dumps(listed), encoding="utf-8")
        found = fingerprint_of(open_shards(part), _stored(bank_dtype))
        if fingerprint not in (None, found):
            raise DatasetError(f"content has the fingerprint {found}, {fingerprint} was stated")
        listed["fingerprint"] = found
        (part / META).write_text(json.dumps(listed, indent=1), encoding="utf-8")
        umask = os.umask(0)
        os.umask(umask)
        part.chmod(0o777 & ~umask)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return found


def shard(source: Path, folder: Path, progress: Progress = lambda done: None) -> str:
    """Turn a dataset file into a folder of shards; returns the fingerprint, which both have.

    Args:
        source: the `.npz`.
        folder: to make.
        progress: called with the bytes of each chunk that was read.

    Raises:
        DatasetError: the file is no dataset file or is damaged, or the folder exists.
    """
    if not is_dataset_file(source):
        raise DatasetError(f"{source}: an older layout; turn it into a dataset file first, with "
                           "`ocp-mamba data import`")  # fmt: skip
    keys = npz_keys(source)
    meta = parse_meta(next(read_member(source, "meta")))
    fingerprint = meta.pop("fingerprint", None)
    present = [name for name in ARRAYS if name in keys]

    def counted(name: str) -> Iterator[np.ndarray]:
        for chunk in read_member(source, name):
            progress(chunk.nbytes)
            yield chunk

    arrays = {name: counted(name) for name in present}
    if "chain_first" not in keys:
        arrays["chain_first"] = (
            np.full(len(chunk), MIN_CONTEXT, np.uint8) for chunk in read_member(source, "split")
        )
    bank_dtype = str(next(read_member(source, "bank")).dtype)
    try:
        return write_shards(folder, arrays, meta, bank_dtype=bank_dtype, fingerprint=fingerprint)
    except DatasetError as error:
        raise DatasetError(f"dataset file {source}: {error}") from error


def unshard(folder: Path, out: Path, progress: Progress = lambda done: None) -> str:
    """Turn a folder of shards into a dataset file; returns the fingerprint, which both have.

    Raises:
        DatasetError: the folder is not one of shards, or is damaged.
        OSError: the file cannot be written.
    """
    data = open_shards(folder)
    stored = _stored(data.bank_dtype)
    keys = [name for name in ARRAYS if getattr(data, name) is not None]
    if all((chunk == MIN_CONTEXT).all() for chunk in chunks(data.chain_first)):
        keys.remove("chain_first")
    with _whole(out) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in keys:
            array = getattr(data, name)
            convert = stored if name == "bank" else (lambda rows: rows)
            dtype = convert(array[:1]).dtype
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                _write_head(member, dtype, array.shape)
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


def _write_head(member: Any, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(
        member, {"descr": dtype.str, "fortran_order": False, "shape": shape}
    )


def _stored(bank_dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """What brings a folder's rows, which are unit rows already, to the precision of the file."""
    return np.ascontiguousarray if bank_dtype == "float32" else to_float16


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file beside ``path`` that takes its place when the block ends well."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
