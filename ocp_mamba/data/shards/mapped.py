"""Datasets as a folder of memory-mapped shards, for those that do not fit into memory.

The folder holds the arrays of a dataset file as plain `.npy` files of a bounded size, and a
``meta.json`` that lists them. A shard's data starts on a page and fills whole pages, so that the
system can map the shards of an array side by side: they are one array in memory, read from the disk
where it is looked at. The bank is kept as float32 unit rows, ready for use.
"""

from __future__ import annotations

import ctypes
import functools
import json
import mmap
import os
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.data.dataset import SCHEMA_VERSION, Dataset
from ocp_mamba.errors import DatasetError

META = "meta.json"
FORMAT = "ocp_mamba shards 1"
HEADER = 4096
"""Bytes before a shard's data: a page, so that the data can be mapped where it is wanted."""

ROW_STEP = 4096
"""A shard but the last has a multiple of so many rows: whole pages, whatever a row's size."""

ROWS_READ = 1024
"""Rows of the bank that are copied together."""

RESERVE_NOTHING = 0x4000  # Linux's MAP_NORESERVE: read-only use needs no memory behind it
FIXED = 0x10
FAILED = ctypes.c_void_p(-1).value

ARRAYS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "bank": (("<f4",), (D_VECTOR,)),
    "texts": (("<U",), ()),
    "chain_values": (("<i4",), ()),
    "chain_offsets": (("<i8",), ()),
    "chain_source": (("|u1", "<u2"), ()),
    "split": (("|u1",), ()),
    "chain_first": (("|u1",), ()),
    "chain_tmd": (("<f4",), (D_TMD,)),
    "chain_relation": (("<u2",), ()),
    "chain_confidence": (("<f4",), ()),
}
"""Arrays of the folder: the dtypes and the shape of a row that each may have."""

OPTIONAL = ("chain_tmd", "chain_relation", "chain_confidence")


@dataclass(frozen=True, eq=False)
class MappedDataset(Dataset):
    """A `Dataset` whose arrays lie on the disk; only what is looked at comes into memory.

    Its content was checked when the folder was written; opening it checks names, dtypes, shapes and
    sizes, which takes no time, and trusts the fingerprint in ``meta.json``.

    Attributes:
        stated_fingerprint: what ``meta.json`` says.
        mapped: address and bytes of each array.
    """

    stated_fingerprint: str = ""
    mapped: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check shapes against each other, not the content.

        Raises:
            DatasetError: the arrays do not belong together.
        """
        if self.meta.get("schema_version") != SCHEMA_VERSION:
            found = self.meta.get("schema_version")
            raise DatasetError(f"schema_version {found!r} found, {SCHEMA_VERSION} wanted")
        wanted = {"texts": len(self.bank), "split": len(self.chain_offsets) - 1}
        wanted |= dict.fromkeys(("chain_source", "chain_first", "chain_tmd"), wanted["split"])
        wanted |= dict.fromkeys(("chain_relation", "chain_confidence"), len(self.chain_values))
        for name, rows in wanted.items():
            array = getattr(self, name)
            if array is not None and len(array) != rows:
                raise DatasetError(f"array {name!r}: {len(array)} rows found, {rows} wanted")
        if len(self.bank) == 0 or len(self.split) < 1:
            raise DatasetError("no concepts or no chains found")
        if self.chain_offsets[-1] != len(self.chain_values):
            raise DatasetError(
                f"array 'chain_offsets': ends with {self.chain_offsets[-1]}, the length of "
                f"chain_values, {len(self.chain_values)}, wanted"
            )

    @property
    def in_memory(self) -> bool:
        """No."""
        return False

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the content had when it was written."""
        return self.stated_fingerprint

    def expect(self, chains: np.ndarray) -> None:
        """Let the system read the bank rows of chains that are wanted soon, in the background."""
        steps = np.arange(self.lengths[chains].max())
        valid = steps < self.lengths[chains, None]
        self._expect_rows(
            np.unique(self.chain_values[(self.chain_offsets[chains, None] + steps)[valid]])
        )

    def _expect_rows(self, concepts: np.ndarray) -> None:
        first = self.bank.ctypes.data + concepts.astype(np.int64) * self.bank.strides[0]
        _will_need(first, first + self.bank.strides[0])

    def rows(self, concepts: np.ndarray) -> np.ndarray:
        """Bank rows, copied; some are asked for ahead while others are read."""
        parts = np.array_split(concepts, max(1, len(concepts) // ROWS_READ))
        out = np.empty((len(concepts), *self.bank.shape[1:]), self.bank.dtype)
        at = 0
        for number, part in enumerate(parts):
            for ahead in parts[:2] if number == 0 else parts[number + 1 : number + 2]:
                self._expect_rows(ahead)
            np.take(self.bank, part, axis=0, out=out[at : at + len(part)])
            at += len(part)
            self.release()
        return out

    def expect_ids(self, chains: np.ndarray) -> None:
        """Let the system read, in the background, which concepts chains have."""
        first = self.chain_values.ctypes.data + self.chain_offsets[chains] * 4
        _will_need(first, first + self.lengths[chains] * 4)

    def release(self) -> None:
        """Let go of the pages that were looked at; they are read again where they are wanted."""
        for address, size in self.mapped:
            _libc().madvise(address, size, mmap.MADV_DONTNEED)


def is_shards(path: str | Path) -> bool:
    """Whether a path is a folder of shards."""
    return (Path(path) / META).is_file()


def open_shards(folder: str | Path) -> MappedDataset:
    """Open a folder of shards; nothing but ``meta.json`` and the headers is read.

    Raises:
        DatasetError: a file is missing, damaged or not what ``meta.json`` says, or this system
            cannot map shards side by side.
    """
    folder = Path(folder)
    try:
        listed = _read_meta(folder)
        mapped: list[tuple[int, int]] = []
        arrays = {name: _array(folder, name, listed, mapped) for name in ARRAYS}
        return MappedDataset(
            **arrays,  # type: ignore[arg-type]
            meta=listed["meta"],
            bank_dtype=listed["bank_dtype"],
            stated_fingerprint=listed["fingerprint"],
            mapped=mapped,
        )
    except DatasetError as error:
        raise DatasetError(f"dataset folder {folder}: {error}") from error


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        listed = json.loads((folder / META).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{META} cannot be read: {error}") from error
    wanted = {"format", "meta", "bank_dtype", "fingerprint", "arrays"}
    if not isinstance(listed, dict) or listed.get("format") != FORMAT or not wanted <= set(listed):
        raise DatasetError(
            f"{META}: an object with format {FORMAT!r} and {sorted(wanted)} wanted; write the "
            "folder again with `ocp-mamba data shard`"
        )
    return listed


def _array(
    folder: Path, name: str, listed: dict[str, Any], mapped: list[tuple[int, int]]
) -> np.ndarray | None:
    """One array of the folder, mapped; None for an optional one that is not there."""
    if name not in listed["arrays"]:
        if name in OPTIONAL:
            return None
        raise DatasetError(f"{META} lists no array {name!r}")
    dtype, row = np.dtype(listed["arrays"][name]["dtype"]), tuple(listed["arrays"][name]["row"])
    dtypes, wanted_row = ARRAYS[name]
    if not dtype.str.startswith(dtypes) or row != wanted_row:
        raise DatasetError(
            f"array {name!r}: {dtype.str} rows of {row} found, {' or '.join(dtypes)} rows of "
            f"{wanted_row} wanted"
        )
    rows = listed["arrays"][name]["rows"]
    row_bytes = dtype.itemsize * int(np.prod(row, dtype=np.int64))
    files = [folder / shard_name(name, i) for i in range(len(rows))]
    for path, n in zip(files, rows, strict=True):
        found = path.stat().st_size if path.is_file() else None
        if found != HEADER + n * row_bytes:
            raise DatasetError(
                f"{path.name}: {'no such file' if found is None else f'{found} bytes'} found, "
                f"{HEADER + n * row_bytes} bytes wanted: copy it or write the folder again"
            )
    buffer = _map(files, [n * row_bytes for n in rows], mapped)
    return np.frombuffer(buffer, dtype).reshape(-1, *row)


def shard_name(array: str, number: int) -> str:
    """Return the file name of one shard."""
    return f"{array}-{number:05d}.npy"


def _map(files: list[Path], sizes: list[int], mapped: list[tuple[int, int]]) -> Any:
    """Map the data of files side by side, readable, and private if something writes there."""
    total = sum(sizes)
    if total == 0:
        return b""
    if mmap.PAGESIZE != HEADER:
        raise DatasetError(
            f"pages of {mmap.PAGESIZE} bytes here, shards are made for {HEADER}: use "
            "`ocp-mamba data unshard` elsewhere, and the .npz here"
        )
    libc = _libc()
    private = mmap.MAP_PRIVATE | RESERVE_NOTHING
    base = libc.mmap(None, total, mmap.PROT_READ, private | mmap.MAP_ANONYMOUS, -1, 0)
    if base in (None, FAILED):
        raise DatasetError(f"cannot map {total} bytes: {_why()}")
    at = base
    for path, size in zip(files, sizes, strict=True):
        with path.open("rb") as file:
            got = libc.mmap(
                at, size, mmap.PROT_READ | mmap.PROT_WRITE, private | FIXED, file.fileno(), HEADER
            )
        if got != at:
            libc.munmap(base, total)
            raise DatasetError(f"cannot map {path.name}: {_why()}")
        at += size
    buffer = (ctypes.c_char * total).from_address(base)
    weakref.finalize(buffer, libc.munmap, base, total)
    mapped.append((base, total))
    return buffer


def _will_need(first: np.ndarray, end: np.ndarray) -> None:
    """Ask for the pages of addresses ``first`` to ``end``, each int64 ``(n,)``."""
    libc, pages = _libc(), first // HEADER * HEADER
    for page, last in zip(pages.tolist(), end.tolist(), strict=True):
        libc.madvise(page, last - page, mmap.MADV_WILLNEED)


@functools.cache
def _libc() -> Any:
    """The C library, with the types of the calls that are made."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return libc


def _why() -> str:
    return os.strerror(ctypes.get_errno())
