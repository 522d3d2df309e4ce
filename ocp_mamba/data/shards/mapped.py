"""Datasets as a folder of memory-mapped arrays, for those that do not fit into memory.

The folder holds each array of a dataset file as one plain `.npy` file, and a ``meta.json`` that
lists them. The arrays are mapped: what is used is read from the disk, and can be dropped again. The
bank is stored as float32 unit rows, ready for use.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.data.dataset import SCHEMA_VERSION, Dataset
from ocp_mamba.data.validation import check_meta
from ocp_mamba.errors import DatasetError, shown
from ocp_mamba.system.parsing import json_object, read_text

META = "meta.json"
FORMAT = "ocp_mamba shards 2"

OLD_FORMAT = "ocp_mamba shards 1"
"""Format of folders with several files an array; `convert.shard` turns them into today's."""

HEADER = 4096
"""Bytes before an array's data. The number of rows is known last, so there must be room for it."""

ROWS_READ = 1024
"""Rows of the bank that are copied together."""

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x40 if sys.platform == "darwin" else 0x4000)
"""No memory is set aside for a mapping: without it, one larger than memory may be refused."""

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
"""Arrays of the folder: the dtypes that each may have, and the shape of its rows."""

KEYS: dict[str, type] = {
    "format": str,
    "meta": dict,
    "bank_dtype": str,
    "fingerprint": str,
    "arrays": dict,
}
"""Keys of ``meta.json``. It has a ``checksum`` too, unless an earlier version wrote it."""

MAX_META_BYTES = 1 << 24

OPTIONAL = ("chain_tmd", "chain_relation", "chain_confidence")


@dataclass(frozen=True, eq=False)
class MappedDataset(Dataset):
    """A `Dataset` whose arrays are read from the disk where they are used.

    Its content was checked when the folder was written. Opening it checks names, dtypes, shapes and
    sizes, and trusts the fingerprint in ``meta.json``.

    Attributes:
        stated_fingerprint: the fingerprint in ``meta.json``.
        mapped: the memory map of each array's file.
    """

    stated_fingerprint: str = ""
    mapped: dict[str, mmap.mmap] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the arrays' lengths against each other, but not their content.

        Raises:
            DatasetError: the arrays do not belong together.
        """
        check_meta(self.meta, SCHEMA_VERSION, self.chain_relation is not None)
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
        """False."""
        return False

    @property
    def fingerprint(self) -> str:
        """The fingerprint that the content had when it was written."""
        return self.stated_fingerprint

    def expect(self, chains: np.ndarray) -> None:
        """Let the system read the bank rows of chains that are used soon, in the background."""
        steps = np.arange(self.lengths[chains].max())
        valid = steps < self.lengths[chains, None]
        self._expect_rows(
            np.unique(self.chain_values[(self.chain_offsets[chains, None] + steps)[valid]])
        )

    def _expect_rows(self, concepts: np.ndarray) -> None:
        row_bytes = self.bank.strides[0]
        first = concepts.astype(np.int64) * row_bytes
        _prefetch(self.mapped["bank"], first, first + row_bytes)

    def expect_ids(self, chains: np.ndarray) -> None:
        """Let the system read the concept ids of chains that are used soon, in the background."""
        first = self.chain_offsets[chains] * self.chain_values.itemsize
        end = first + self.lengths[chains] * self.chain_values.itemsize
        _prefetch(self.mapped["chain_values"], first, end)

    def rows(self, concepts: np.ndarray) -> np.ndarray:
        """Bank rows, copied; the next rows are prefetched while some are read."""
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

    def release(self) -> None:
        """Drop all pages from memory; they are read again where they are used."""
        for mapping in self.mapped.values():
            mapping.madvise(mmap.MADV_DONTNEED)


def is_shards(path: str | Path) -> bool:
    """Whether a path is a folder of mapped arrays."""
    return (Path(path) / META).is_file()


def open_shards(folder: str | Path) -> MappedDataset:
    """Open a folder of mapped arrays; only ``meta.json`` is read, and the files' sizes.

    Raises:
        DatasetError: a file is missing, damaged or not what ``meta.json`` says, or the folder was
            written by an older version.
    """
    folder = Path(folder)
    try:
        listed = read_meta(folder)
        if listed["format"] == OLD_FORMAT:
            raise DatasetError(
                "written by an older version of ocp-mamba, in several files an array; write it "
                f"anew with `ocp-mamba data shard {folder} NEW_FOLDER`"
            )
        mapped: dict[str, mmap.mmap] = {}
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


def read_meta(folder: Path) -> dict[str, Any]:
    """Read the ``meta.json`` of a folder, of today's format or the older one.

    Raises:
        DatasetError: it cannot be read, or is not that of a dataset folder; names key or array.
    """
    text = read_text(folder / META, DatasetError, "list of arrays", MAX_META_BYTES)
    listed = json_object(text, DatasetError, META)
    formats = (FORMAT, OLD_FORMAT)
    if listed.get("format") not in formats or KEYS.keys() - set(listed):
        raise DatasetError(
            f"{META}: an object with format {FORMAT!r} and {sorted(KEYS)} wanted; write the "
            "folder again with `ocp-mamba data shard`"
        )
    for key, kind in KEYS.items():
        if not isinstance(listed[key], kind):
            raise DatasetError(
                f"{META}: key {key!r}: {shown(listed[key])} found, {kind.__name__} wanted"
            )
    for name, entry in listed["arrays"].items():
        if not isinstance(entry, dict):
            raise DatasetError(f"{META}: array {shown(name)}: {shown(entry)} found, object wanted")
    if listed["bank_dtype"] not in ("float16", "float32"):
        raise DatasetError(
            f"{META}: bank_dtype {shown(listed['bank_dtype'])} found, float16 or float32 wanted"
        )
    stated = listed.pop("checksum", None)
    if stated not in (None, checksum(listed)):
        raise DatasetError(
            f"{META}: the file was damaged or edited: its checksum is not {shown(stated)}; copy it "
            "or write the folder again"
        )
    return listed


def checksum(listed: dict[str, Any]) -> str:
    """Return the SHA-256 of what ``meta.json`` holds beside its checksum, hex."""
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


TEXT = re.compile(r"<U[1-9][0-9]{0,6}\Z")
"""Dtype of an array of texts, by its longest text."""


def _array(
    folder: Path, name: str, listed: dict[str, Any], mapped: dict[str, mmap.mmap]
) -> np.ndarray | None:
    """One array of the folder; its map is added to ``mapped``. None for an absent optional one."""
    if name not in listed["arrays"]:
        if name in OPTIONAL:
            return None
        raise DatasetError(f"{META} lists no array {name!r}")
    entry = listed["arrays"][name]
    kind, found_row, rows = entry.get("dtype"), entry.get("row"), entry.get("rows")
    dtypes, row = ARRAYS[name]
    known = isinstance(kind, str) and (kind in dtypes or ("<U" in dtypes and TEXT.match(kind)))
    if not known or found_row != list(row):
        raise DatasetError(
            f"array {name!r}: {shown(kind)} rows of {shown(found_row)} found, "
            f"{' or '.join(dtypes)} rows of {list(row)} wanted"
        )
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 0:
        raise DatasetError(f"array {name!r}: {shown(rows)} rows found, a number wanted")
    dtype = np.dtype(kind)
    path = folder / file_name(name)
    size = HEADER + rows * dtype.itemsize * int(np.prod(row, dtype=np.int64))
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise DatasetError(
            f"{path.name}: {'no such file' if found is None else f'{found} bytes'} found, "
            f"{size} bytes wanted: copy it or write the folder again"
        )
    mapped[name] = _map(path)
    return np.frombuffer(mapped[name], dtype, offset=HEADER).reshape(-1, *row)


def file_name(array: str) -> str:
    """Return the name of an array's file."""
    return f"{array}.npy"


def _map(path: Path) -> mmap.mmap:
    """Map a file; it is never changed: a write into the array stays in memory.

    Raises:
        DatasetError: the system cannot map it.
    """
    # Torch warns of arrays that cannot be written, though nothing writes into this one.
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | NO_RESERVE
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, flags=flags, prot=protection)
    except OSError as error:
        raise DatasetError(f"cannot map {path.name}: {error}") from error


def _prefetch(mapping: mmap.mmap, first: np.ndarray, end: np.ndarray) -> None:
    """Ask for the pages of some bytes of the data, ``first`` to ``end``, int64 ``(n,)`` each."""
    pages = (first + HEADER) // mmap.PAGESIZE * mmap.PAGESIZE
    lengths = end + HEADER - pages
    with suppress(OSError):  # only a hint: what was not prefetched is read when it is used
        for page, length in zip(pages.tolist(), lengths.tolist(), strict=True):
            mapping.madvise(mmap.MADV_WILLNEED, page, length)
