"""The dataset: a bank of concepts, chains over it, a split, and the `.npz` file that holds them.

The file holds no pickles. Its keys are described in ``docs/dataset.md``; `Dataset` checks them all,
whether they come from a file or from code, so that an invalid dataset does not exist.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.arrays import DatasetArrays
from ocp_mamba.data.fingerprint import chunks, fingerprint_of
from ocp_mamba.data.npz import Npz, npz_keys, write_npz
from ocp_mamba.data.validation import check_characters, check_dataset
from ocp_mamba.errors import DatasetError, shown
from ocp_mamba.system.parsing import json_object

SCHEMA_VERSION = 1
"""Version of the file's keys; a file with another one is refused."""

SPLITS = ("train", "val", "test")
"""Names of the values 0, 1 and 2 in `Dataset.split`."""

REQUIRED_KEYS = (
    "bank",
    "texts",
    "chain_values",
    "chain_offsets",
    "chain_source",
    "split",
    "meta",
)
OPTIONAL_KEYS = ("chain_tmd", "chain_first", "chain_relation", "chain_confidence")


@dataclass(frozen=True)
class Examples:
    """The OCP sequences of a split as flat arrays of one length, sorted by chain, then position.

    Example i has the context ``chain[:position]``, ending in ``last``, and the target
    ``chain[position]``.

    Attributes:
        chain: int64 (n,), chain ids.
        position: int64 (n,), index of the target in its chain.
        last: int32 (n,), bank id of the context's last concept.
        target: int32 (n,), bank id of the target.
    """

    chain: np.ndarray
    position: np.ndarray
    last: np.ndarray
    target: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset(DatasetArrays):
    """Concepts with their vectors, chains of them, and the split of the chains.

    The fields are those of `DatasetArrays`; creating a dataset checks them.
    """

    def __post_init__(self) -> None:
        """Check every array.

        Raises:
            DatasetError: an array has another dtype, shape or range than wanted; names its key.
        """
        check_dataset(self, SCHEMA_VERSION, len(SPLITS))

    @property
    def in_memory(self) -> bool:
        """Whether the bank is in memory; a mapped bank is read from the disk when it is used."""
        return True

    @property
    def n_concepts(self) -> int:
        """Rows of the bank."""
        return len(self.bank)

    @property
    def n_chains(self) -> int:
        """Chains in all splits."""
        return len(self.split)

    @property
    def relations(self) -> tuple[str, ...]:
        """Names of the relations between concepts; empty for a dataset without relations."""
        return tuple(self.meta["relations"]) if self.chain_relation is not None else ()

    def steps(self, at: np.ndarray) -> np.ndarray | None:
        """Relation and confidence by which concepts follow the one before them.

        Args:
            at: integers of any shape, indices into ``chain_values``.

        Returns:
            float32 ``(*at.shape, 2)``: the number of the relation, 0 for unknown, and its
            confidence, 0 where it is unknown; None for a dataset without relations.
        """
        if self.chain_relation is None:
            return None
        relation = self.chain_relation[at]
        confidence = self.chain_confidence
        certainty = relation > 0 if confidence is None else confidence[at]
        return np.stack([relation, certainty], axis=-1).astype(np.float32)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Concepts per chain, int64 (n_chains,)."""
        return np.diff(self.chain_offsets)

    def chain(self, i: int) -> np.ndarray:
        """Bank ids of chain ``i``, int32 (length,).

        Raises:
            IndexError: there is no chain ``i``.
        """
        if not 0 <= i < self.n_chains:
            raise IndexError(f"chain {i} does not exist; there are {self.n_chains}")
        return self.chain_values[self.chain_offsets[i] : self.chain_offsets[i + 1]]

    def chains_in(self, split: str) -> np.ndarray:
        """Ids of the chains of a split, int64, ascending.

        Raises:
            ValueError: ``split`` is none of `SPLITS`.
        """
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is unknown; choose one of {', '.join(SPLITS)}")
        return np.flatnonzero(self.split == SPLITS.index(split))

    def n_examples(self, split: str) -> int:
        """Number of OCP sequences of a split: targets over all its chains."""
        ids = self.chains_in(split)
        return int((self.lengths[ids] - self.chain_first[ids]).sum())

    def first_targets(self, ids: np.ndarray, min_context: int | None = None) -> np.ndarray:
        """Index of the first target in each of some chains, int64; arguments as `examples`."""
        return first_targets(self.chain_first[ids], self.lengths[ids], min_context)

    def examples(self, split: str, min_context: int | None = None) -> Examples:
        """The OCP sequences of a split.

        Args:
            split: "train", "val" or "test".
            min_context: fewest concepts of context; None takes the targets that the dataset is
                evaluated on, from each chain's ``chain_first`` on. 1 gives every step of a chain.

        Raises:
            ValueError: ``split`` is unknown.
        """
        ids = self.chains_in(split)
        first = self.first_targets(ids, min_context)
        counts = self.lengths[ids] - first
        chain = np.repeat(ids, counts)
        start = np.repeat(np.cumsum(counts) - counts, counts)
        position = np.arange(len(chain)) - start + np.repeat(first, counts)
        flat = self.chain_offsets[chain] + position
        return Examples(chain, position, self.chain_values[flat - 1], self.chain_values[flat])

    def stored_bank(self) -> np.ndarray:
        """The bank in the file's precision, (n_concepts, 768)."""
        return unit_rows(self.bank) if self.bank_dtype == "float32" else to_float16(self.bank)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the content, hex: the same for any compression, file name or text width."""
        return fingerprint_of(self, unit_rows if self.bank_dtype == "float32" else to_float16)

    def rows(self, concepts: np.ndarray) -> np.ndarray:
        """Bank rows of some concepts, float32 ``(n, 768)``, copied."""
        return self.bank[concepts]

    def expect(self, chains: np.ndarray) -> None:
        """Prefetch the bank rows of chains that are used soon; does nothing in memory."""

    def expect_ids(self, chains: np.ndarray) -> None:
        """Prefetch the concept ids of chains that are used soon; does nothing in memory."""

    def save(self, path: str | Path) -> None:
        """Write the `.npz`. A save that fails leaves an older file at ``path`` as it was.

        Raises:
            OSError: the folder does not exist or cannot be written.
        """
        arrays: dict[str, Any] = {
            "bank": self.stored_bank(),
            "texts": self.texts,
            "chain_values": self.chain_values,
            "chain_offsets": self.chain_offsets,
            "chain_source": self.chain_source,
            "split": self.split,
            "meta": np.array(
                json.dumps(
                    self.meta | {"fingerprint": self.fingerprint},
                    sort_keys=True,
                    ensure_ascii=False,
                )
            ),
        }
        for key in ("chain_tmd", "chain_relation", "chain_confidence"):
            if getattr(self, key) is not None:
                arrays[key] = getattr(self, key)
        if np.any(self.chain_first != MIN_CONTEXT):
            arrays["chain_first"] = self.chain_first
        write_npz(Path(path), arrays)

    @classmethod
    def load(cls, path: str | Path) -> Dataset:
        """Read a dataset file; float16 rows are brought back to unit norm in float32.

        Raises:
            DatasetError: no such file, not an `.npz`, truncated, pickles in it, a key that is
                missing, unknown, or of another dtype, shape or range than wanted, a content whose
                fingerprint is not the one stored in the file, or a size beyond the limit (see
                `data.npz`).
        """
        arrays = _read_npz(Path(path))
        try:
            meta = parse_meta(arrays["meta"])
            wanted = meta.pop("fingerprint", None)
            bank = arrays["bank"]
            if bank.dtype not in (np.float16, np.float32):
                raise DatasetError(f"key 'bank': {bank.dtype} found, float16 or float32 wanted")
            offsets = arrays["chain_offsets"]
            chain_first = np.full(max(offsets.size - 1, 0), MIN_CONTEXT, dtype=np.uint8)
            dataset = cls(
                bank=unit_rows(bank) if bank.ndim == 2 else bank,
                texts=arrays["texts"],
                chain_values=arrays["chain_values"],
                chain_offsets=offsets,
                chain_source=arrays["chain_source"],
                chain_tmd=arrays.get("chain_tmd"),
                split=arrays["split"],
                meta=meta,
                chain_first=arrays.get("chain_first", chain_first),
                bank_dtype=str(bank.dtype),
                chain_relation=arrays.get("chain_relation"),
                chain_confidence=arrays.get("chain_confidence"),
            )
            if wanted not in (None, dataset.fingerprint):
                raise DatasetError(
                    f"content has the fingerprint {dataset.fingerprint}, key 'meta' says "
                    f"{shown(wanted)}: "
                    "the file was damaged or edited; copy or build it again"
                )
            return dataset
        except DatasetError as error:
            raise DatasetError(f"dataset file {path}: {error}") from error


def first_targets(first: np.ndarray, lengths: np.ndarray, min_context: int | None) -> np.ndarray:
    """Index of the first target in each of some chains, int64.

    With None it is the chain's own ``first``; otherwise the concept after the first ``min_context``
    ones. A chain that is too short for that has no target, and its length is returned.
    """
    if min_context is None:
        return first.astype(np.int64)
    return np.minimum(min_context, lengths)


def unit_rows(bank: np.ndarray) -> np.ndarray:
    """Rows that are nearly unit, divided by their norms, as float32 (n, d).

    Rows already within 1e-6 of unit norm keep their bits, so doing it twice changes nothing. Rows
    that were rounded to float16 are off by up to 5e-4; those off by more than 2e-3 are left alone
    for the check to refuse.
    """
    rows = bank.astype(np.float32)
    for part in chunks(rows):  # views: a whole bank in float64 would take twice its own memory
        norms = np.linalg.norm(part.astype(np.float64), axis=1)
        off = np.abs(norms - 1)
        nearly = (off > 1e-6) & (off < 2e-3)
        part[nearly] = (part[nearly] / norms[nearly, None]).astype(np.float32)
    return rows


def to_float16(bank: np.ndarray) -> np.ndarray:
    """Unit rows as float16 rows (n, d) that survive `unit_rows` and rounding without change.

    Rounds, normalizes and rounds again until nothing moves. It ends: the normalized row is the
    point of the sphere nearest to the rounded row, so each turn brings the two closer together.
    """
    rounded = bank.astype(np.float16)
    while True:
        again = unit_rows(rounded).astype(np.float16)
        if np.array_equal(again, rounded):
            return rounded
        rounded = again


def is_dataset_file(path: str | Path) -> bool:
    """Whether an `.npz` is a dataset file, and not a file of an older layout.

    Raises:
        DatasetError: as `npz_keys`.
    """
    return not {"bank", "chain_offsets", "chain_values"}.isdisjoint(npz_keys(path))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a dataset file, once its list of keys is right."""
    file = Npz(path)
    missing = sorted(set(REQUIRED_KEYS) - set(file.keys))
    unknown = sorted(set(file.keys) - set(REQUIRED_KEYS) - set(OPTIONAL_KEYS))
    if missing:
        raise DatasetError(
            f"dataset file {path}: lacks the keys {missing}; it holds {shown(sorted(file.keys))}. "
            "Build it again with `ocp-mamba data build`, or turn an older file into a dataset "
            "file with `ocp-mamba data import`"
        )
    if unknown:
        raise DatasetError(
            f"dataset file {path}: holds unknown keys {shown(unknown)}; "
            f"known: {[*REQUIRED_KEYS, *OPTIONAL_KEYS]}"
        )
    for key in file.keys:
        if file.header(key).dtype.hasobject:
            raise DatasetError(
                f"dataset file {path}: key {key!r} is an object array, which is stored as a "
                "pickle; a dataset file holds none"
            )
    return {key: file.array(key) for key in file.keys}


def parse_meta(array: np.ndarray) -> dict[str, Any]:
    """Return the object in the key ``meta``.

    Raises:
        DatasetError: it holds something else.
    """
    if array.dtype.kind != "U" or array.shape != ():
        raise DatasetError(
            f"key 'meta': {array.dtype} {array.shape} found, one unicode string of JSON wanted"
        )
    check_characters("meta", array)
    return json_object(str(array), DatasetError, "key 'meta'")
