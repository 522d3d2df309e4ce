"""Files of predictions, written block by block: parquet, or npz without pickles."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from ocp_mamba.config import D_VECTOR
from ocp_mamba.system.files import atomic_write

PARQUET, NPZ = ".parquet", ".npz"
SUFFIXES = (PARQUET, NPZ)

Columns = Mapping[str, np.ndarray]
"""Arrays of n rows: ``example`` int64, ``context_length`` int32; ``chain`` int64 and ``target``
int64 bank rows of a dataset; ``found`` int64 (n, k) bank rows and ``score`` float32 (n, k), best
first, where there is a bank; ``vector`` float32 (n, 768) where it was asked for."""


class Writer(Protocol):
    """An open file of predictions."""

    def write(self, columns: Columns) -> None:
        """Append some rows; every call has the same columns."""
        ...


@contextmanager
def open_writer(path: Path, texts: np.ndarray | None) -> Iterator[Writer]:
    """Open a file that has its name when the block ends without an error, and never a part of it.

    Args:
        path: ends in one of `SUFFIXES`; its folder exists.
        texts: of the bank rows; None where there is no bank.
    """
    with atomic_write(path) as file:
        kind = _ParquetWriter if path.suffix == PARQUET else _NpzWriter
        with kind(file, path.parent, texts) as writer:
            yield writer


class _ParquetWriter:
    """A table with texts in place of bank rows, a row group a block.

    With several concepts for each example, ``concept`` and ``score`` are the best one's, and
    ``concepts`` and ``scores`` are lists of all.
    """

    def __init__(self, file: IO[bytes], folder: Path, texts: np.ndarray | None) -> None:
        import pyarrow as pa

        self._pa, self._file = pa, file
        self._texts = None if texts is None else pa.array([str(text) for text in texts])
        self._writer: Any = None

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, columns: Columns) -> None:
        table = self._table(columns)
        if self._writer is None:
            import pyarrow.parquet as pq

            self._writer = pq.ParquetWriter(self._file, table.schema)
        self._writer.write_table(table, row_group_size=max(1, len(table)))

    def _table(self, columns: Columns) -> Any:
        pa = self._pa
        table = {
            name: pa.array(columns[name])
            for name in ("example", "chain", "context_length")
            if name in columns
        }
        if "target" in columns:
            table["target"] = self._named(columns["target"])
        if "found" in columns:
            found, score = columns["found"], columns["score"]
            table["concept"] = self._named(found[:, 0])
            table["score"] = pa.array(score[:, 0])
            if (k := found.shape[1]) > 1:
                table["concepts"] = self._lists(self._named(found.ravel()), k)
                table["scores"] = self._lists(pa.array(score.ravel()), k)
        if "vector" in columns:
            flat = pa.array(columns["vector"].ravel())
            table["vector"] = pa.FixedSizeListArray.from_arrays(flat, D_VECTOR)
        return pa.table(table)

    def _named(self, rows: np.ndarray) -> Any:
        assert self._texts is not None
        return self._texts.take(self._pa.array(rows))

    def _lists(self, values: Any, k: int) -> Any:
        offsets = self._pa.array(np.arange(0, len(values) + 1, k, dtype=np.int32))
        return self._pa.ListArray.from_arrays(offsets, values)


class _NpzWriter:
    """Arrays by the names of the columns, and the bank's ``texts``, whose rows they name.

    An npz holds one array after the other, so each one waits in a temporary file until the end.
    """

    def __init__(self, file: IO[bytes], folder: Path, texts: np.ndarray | None) -> None:
        self._file, self._folder, self._texts = file, folder, texts
        self._opened = ExitStack()
        self._parts: dict[str, tuple[IO[bytes], np.ndarray]] = {}
        self._rows = 0

    def __enter__(self) -> _NpzWriter:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        with self._opened:
            if kind is None:
                self._join()

    def write(self, columns: Columns) -> None:
        for name, array in columns.items():
            if name not in self._parts:
                waiting = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115, closed by _opened
                self._parts[name] = self._opened.enter_context(waiting), array[:0]
            np.ascontiguousarray(array).tofile(self._parts[name][0])
        self._rows += len(columns["example"])

    def _join(self) -> None:
        with zipfile.ZipFile(self._file, "w") as archive:
            for name, (stream, empty) in self._parts.items():
                header = np.lib.format.header_data_from_array_1_0(empty)
                header["shape"] = (self._rows, *empty.shape[1:])
                stream.seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    shutil.copyfileobj(stream, member, 2**20)
            if self._texts is not None:
                with archive.open("texts.npy", "w", force_zip64=True) as member:
                    texts = np.array([str(text) for text in self._texts])
                    np.lib.format.write_array(member, texts, allow_pickle=False)
