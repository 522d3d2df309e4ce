"""What a batch prediction reads: the examples of a dataset, or the rows of an npz of vectors.

Each is read in blocks, so that memory does not grow with the file. A block has the examples of an
input one after the other, in the input's own order.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import torch

from ocp_mamba.config import D_VECTOR
from ocp_mamba.data.batches import MEGABATCH, batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.npz import npz_keys
from ocp_mamba.errors import DatasetError, JobError
from ocp_mamba.model.base import conditions
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.text import MAX_POSITIONS, passes

VECTORS, LENGTHS, TMD = "seq_vectors", "lengths", "tmd"
CHAINS_IN_A_BATCH = 64
"""As many as an evaluation takes."""
POSITIONS_IN_A_BLOCK = 16 * MAX_POSITIONS
"""Vectors of an npz that are read at once, 50 MB of float32, unless one sequence has more."""


HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
"""Readers of an array's header by its format version."""


@dataclass(frozen=True)
class Block:
    """Predictions of n examples.

    Attributes:
        predicted: float32 (n, 768), unit rows.
        context_length: int32 (n,), concepts that the model read.
        chain: int64 (n,), chains of the dataset; None for an npz of vectors.
        target: int64 (n,), bank rows of the concepts that really come next, or None.
    """

    predicted: np.ndarray
    context_length: np.ndarray
    chain: np.ndarray | None = None
    target: np.ndarray | None = None


class Input(Protocol):
    """A file to predict.

    Attributes:
        n: examples.
        has_chains: whether its blocks have ``chain`` and ``target``.
    """

    n: int
    has_chains: bool

    def blocks(self, model: OCPMambaLVM) -> Iterator[Block]:
        """Yield the predictions of all examples, in order."""
        ...


def holds_vectors(path: Path) -> bool:
    """Whether a file is an npz of vectors: it has the key ``seq_vectors``."""
    return path.is_file() and path.suffix == ".npz" and VECTORS in npz_keys(path)


class DatasetInput:
    """The OCP sequences of some splits of a dataset, sorted by chain, then position."""

    has_chains = True

    def __init__(self, dataset: Dataset, splits: Sequence[str]) -> None:
        """Take the splits in the order given."""
        self._dataset, self._splits = dataset, splits
        self.n = sum(dataset.n_examples(split) for split in splits)

    def blocks(self, model: OCPMambaLVM) -> Iterator[Block]:
        """Yield a block for every `MEGABATCH` batches of whole chains."""
        bank = torch.from_numpy(self._dataset.bank)
        for split in self._splits:
            taken: list[Block] = []
            chains = batches(self._dataset, split, CHAINS_IN_A_BATCH, bank=bank, in_order=True)
            for batch in chains:
                given = conditions(model, batch.tmd, batch.relations)
                with torch.inference_mode():
                    predicted = model.predict_all(batch.vectors, **given)[batch.mask]
                chain, position = batch.mask.nonzero(as_tuple=True)
                taken.append(
                    Block(
                        predicted.numpy(),
                        (position + 1).numpy().astype(np.int32),
                        batch.chain_ids[chain].numpy(),
                        batch.targets[batch.mask].numpy(),
                    )
                )
                if len(taken) == MEGABATCH:
                    yield _in_order(taken)
                    taken = []
            if taken:
                yield _in_order(taken)


def _in_order(taken: list[Block]) -> Block:
    """One block of several, sorted by chain, then position."""
    chain, length, target, predicted = (
        np.concatenate([getattr(block, name) for block in taken])
        for name in ("chain", "context_length", "target", "predicted")
    )
    order = np.lexsort((length, chain))
    return Block(predicted[order], length[order], chain[order], target[order])


class VectorInput:
    """An npz of right-padded sequences of vectors: ``seq_vectors`` (B, L, 768), of any float type.

    It may also hold ``lengths`` (B,), the valid positions of each sequence, all where it is
    absent, and ``tmd`` (B, 16), for a model with TMD.
    """

    has_chains = False

    def __init__(self, path: Path, model: OCPMambaLVM) -> None:
        """Read the headers, the lengths and the TMD vectors.

        Raises:
            DatasetError: a key is unknown, missing, or of another shape or dtype than wanted, or
                the file is damaged.
            JobError: it lacks the TMD vectors that the model takes, or has some that it does not.
        """
        self._path = path
        keys = npz_keys(path)
        unknown = sorted(set(keys) - {VECTORS, LENGTHS, TMD})
        if unknown:
            raise self._error(f"holds unknown keys {unknown}; known: {[VECTORS, LENGTHS, TMD]}")
        with _member(path, VECTORS) as (_, shape, dtype, by_columns):
            fits = len(shape) == 3 and shape[2] == D_VECTOR and shape[1] >= 1
            if not fits or dtype.kind != "f" or by_columns:
                order = ", stored by columns" if by_columns else ""
                raise self._error(
                    f"key {VECTORS!r}: {dtype} {shape}{order} found, floats (B, L, {D_VECTOR}) "
                    "stored by rows wanted"
                )
        self.n, self._longest = shape[0], shape[1]
        self._lengths = self._counts(keys)
        self._tmd = self._conditioning(keys, model)

    def blocks(self, model: OCPMambaLVM) -> Iterator[Block]:
        """Yield a block for every `POSITIONS_IN_A_BLOCK` positions.

        Raises:
            DatasetError: a number is not finite, a valid vector is all zeros, or the file ends
                early; names the sequence.
        """
        rows = max(1, POSITIONS_IN_A_BLOCK // self._longest)
        with _member(self._path, VECTORS) as (stream, _, dtype, _):
            for start in range(0, self.n, rows):
                n = min(rows, self.n - start)
                size = n * self._longest * D_VECTOR * dtype.itemsize
                content = self._read(stream, size)
                vectors = np.frombuffer(content, dtype).reshape(n, self._longest, D_VECTOR)
                yield self._block(model, vectors, start)
            self._read(stream, 0)

    def _block(self, model: OCPMambaLVM, vectors: np.ndarray, start: int) -> Block:
        n = len(vectors)
        lengths = self._lengths[start : start + n]
        directions = torch.from_numpy(self._directions(vectors, lengths, start))
        predicted = np.empty((n, D_VECTOR), dtype=np.float32)
        counts = torch.from_numpy(lengths)
        for rows in passes(counts):
            tmd = None if self._tmd is None else torch.from_numpy(self._tmd[start + rows.numpy()])
            read = directions[rows, : int(counts[rows].max())]
            with torch.inference_mode():
                predicted[rows.numpy()] = model(read, tmd, counts[rows]).numpy()
        return Block(predicted, lengths.astype(np.int32))

    def _directions(self, vectors: np.ndarray, lengths: np.ndarray, start: int) -> np.ndarray:
        """The valid vectors with 1 as their largest number, float32; zero where padded."""
        valid = np.arange(self._longest) < lengths[:, None]
        rows = vectors if vectors.dtype.itemsize >= 4 else vectors.astype(np.float32)
        rows = np.where(valid[..., None], rows, rows.dtype.type(0))
        largest = np.abs(rows).max(axis=-1, keepdims=True)
        wrong = np.argwhere(valid & ~(np.isfinite(largest) & (largest > 0))[..., 0])
        if len(wrong):
            b, t = wrong[0]
            what = "all zeros" if largest[b, t, 0] == 0 else "not finite (NaN or infinity)"
            raise self._error(f"{VECTORS}[{start + b}][{t}] is {what}; a direction is wanted")
        directions = np.divide(rows, largest, out=rows, where=largest > 0)
        return directions.astype(np.float32, copy=False)

    def _counts(self, keys: Sequence[str]) -> np.ndarray:
        if LENGTHS not in keys:
            return np.full(self.n, self._longest, dtype=np.int64)
        counts = self._array(LENGTHS)
        low, high = (counts.min(), counts.max()) if counts.size else (1, 1)
        fits = counts.shape == (self.n,) and counts.dtype.kind in "iu"
        if not fits or low < 1 or high > self._longest:
            raise self._error(
                f"key {LENGTHS!r}: {counts.dtype} {counts.shape} of {low} to {high} found, "
                f"{self.n} whole numbers from 1 to {self._longest} wanted"
            )
        return counts.astype(np.int64)

    def _conditioning(self, keys: Sequence[str], model: OCPMambaLVM) -> np.ndarray | None:
        width = model.config.d_tmd
        if TMD not in keys:
            if width:
                raise JobError(f"{self._path}: lacks the key {TMD!r}; the model takes TMD vectors")
            return None
        if not width:
            raise JobError(f"{self._path}: has the key {TMD!r}; the model takes no TMD vectors")
        tmd = self._array(TMD)
        if tmd.shape != (self.n, width) or tmd.dtype.kind != "f" or not np.isfinite(tmd).all():
            raise self._error(
                f"key {TMD!r}: {tmd.dtype} {tmd.shape} found, finite floats ({self.n}, {width}) "
                "wanted"
            )
        return tmd.astype(np.float32)

    def _read(self, stream: IO[bytes], size: int) -> bytes:
        """Read as many bytes; 0 reads to the end, where the checksum is compared."""
        try:
            content = stream.read(size or -1)
        except Exception as error:  # a damaged member makes zipfile raise anything
            raise self._error(f"key {VECTORS!r} is damaged ({error}); make it again") from error
        if len(content) != size:
            raise self._error(f"key {VECTORS!r} is shorter or longer than its header says")
        return content

    def _array(self, key: str) -> np.ndarray:
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                found: np.ndarray = arrays[key]
                return found
        except Exception as error:  # a damaged member makes numpy and zipfile raise anything
            raise self._error(f"key {key!r} cannot be read: {error}") from error

    def _error(self, found: str) -> DatasetError:
        return DatasetError(f"npz of vectors {self._path}: {found}")


@contextmanager
def _member(
    path: Path, key: str
) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any], bool]]:
    """Open an array of an npz: its bytes as a stream, shape, dtype, and whether it is by columns.

    Raises:
        DatasetError: its header cannot be read, or it holds pickles.
    """
    with ExitStack() as opened:
        try:
            archive = opened.enter_context(zipfile.ZipFile(path))
            stream = opened.enter_context(archive.open(f"{key}.npy"))
            read_header = HEADERS[np.lib.format.read_magic(stream)]
            shape, by_columns, dtype = read_header(stream)
            if dtype.hasobject:
                raise ValueError("it holds pickles")
        except Exception as error:  # a damaged member makes numpy and zipfile raise anything
            raise DatasetError(
                f"npz of vectors {path}: key {key!r} cannot be read ({error}); make it again"
            ) from error
        yield stream, shape, dtype, by_columns
