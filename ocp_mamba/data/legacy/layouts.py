"""Reading the array layouts of older `.npz` files: keys, shapes, padding; no repair of vectors.

What each layout means is written in ``docs/import.md``. `LegacyFile` recognises the layout from
the keys and the arrays' headers alone; `LegacyFile.read` then gives one split as flat rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.data.dataset import SPLITS, is_dataset_file
from ocp_mamba.data.legacy.padding import D_FUSED, ROW_SHAPE, ragged_rows, unpad_mask, unpad_zeros
from ocp_mamba.data.npz import Header, Npz
from ocp_mamba.errors import DatasetError

MAX_CONTEXT = 255
"""Longest context that a dataset file can hold: its `chain_first` is uint8."""

PICKLE_HELP = (
    "it is an object array, stored as a pickle, and opening a pickle can run any code that its "
    "author put in it. Only for a file that you made yourself: pass --allow-pickle (in Python "
    "allow_pickle=True). Better, save it again without pickles, in the program that made it: pad "
    "the contexts with zero rows into one float32 array (N, L, 768) and call np.savez"
)


@dataclass(frozen=True)
class Layout:
    """Names of one layout's arrays, after an optional split prefix such as ``val_``.

    ``padding`` says what ends a context early: "zeros" (all-zero rows), "mask" or "none".
    """

    title: str
    context: str
    target: str
    mask: str | None
    padding: str

    @property
    def stems(self) -> tuple[str, ...]:
        """The names that a split of this layout must have."""
        return (self.context, self.target) + ((self.mask,) if self.mask else ())


PADDED = Layout("ragged or zero-padded contexts", "context", "target", None, "zeros")
MASKED = Layout("contexts with masks", "contexts", "targets", "masks", "mask")
WINDOWS = Layout("fixed windows", "context_sequences", "target_vectors", None, "none")
PLAIN_WINDOWS = Layout("fixed windows", "contexts", "targets", None, "none")
LAYOUTS = (PADDED, MASKED, WINDOWS, PLAIN_WINDOWS)
TMD = "tmd"


@dataclass
class RawSplit:
    """The examples of one split as they are in the file; width is 768 or 784.

    Attributes:
        name: "train", "val", "test", or "" for the arrays of a file without splits.
        rows: float32 (R, width), the valid context rows, example after example.
        lengths: int64 (n,), context rows per example.
        target: float32 (n, width of the targets).
        tmd: float32 (n, 16), or None.
        notes: what had to be done to read it, as sentences.
    """

    name: str
    rows: np.ndarray
    lengths: np.ndarray
    target: np.ndarray
    tmd: np.ndarray | None
    notes: list[str]


class LegacyFile:
    """An older `.npz` whose layout is recognized and whose headers are right.

    Attributes:
        layout: the layout found.
        splits: the split names found, in the order of `SPLITS`; ``("",)`` for a file without.
        ignored: keys that are not read.
        pickled: keys that are read as pickles.
    """

    def __init__(self, path: Path, allow_pickle: bool) -> None:
        """Read keys and headers.

        Raises:
            DatasetError: no such file, no whole `.npz`, no known layout, missing keys, a shape or
                dtype that does not fit, or pickles without ``allow_pickle``.
        """
        if is_dataset_file(path):
            raise DatasetError("this already is a dataset file; it needs no import")
        self.path = path
        self._file = Npz(path)
        keys = self._file.keys
        self.layout = _recognize(keys)
        prefixes = _prefixes(keys, self.layout)
        self.splits = tuple(
            "" if p == "" and len(prefixes) == 1 else p or "train" for p in prefixes
        )
        self._prefix = dict(zip(self.splits, prefixes, strict=True))
        self.has_tmd = _has_tmd(keys, prefixes)
        stems = self.layout.stems + ((TMD,) if self.has_tmd else ())
        wanted = [_key(p, stem) for p in prefixes for stem in stems]
        self.ignored = sorted(set(keys) - set(wanted))
        self._headers = {key: self._file.header(key) for key in wanted}
        self.pickled = [key for key in wanted if self._headers[key].dtype.hasobject]
        if self.pickled and not allow_pickle:
            raise DatasetError(f"key {self.pickled[0]!r}: {PICKLE_HELP}")
        for prefix in prefixes:
            self._check_split(prefix)

    def key(self, split: str, stem: str) -> str:
        """Key of an array of a split."""
        return _key(self._prefix[split], stem)

    def read(self, split: str) -> RawSplit:
        """Read one split's arrays.

        Raises:
            DatasetError: damaged content, NaN or infinity, padding that cannot be told from data,
                or a ragged context of another shape.
        """
        notes: list[str] = []
        key = self.key(split, self.layout.context)
        context = self._load(key)
        target = _as_float32(self.key(split, self.layout.target), self._load, notes)
        if context.dtype.hasobject:
            rows, lengths = ragged_rows(key, context)
        else:
            valid = self._valid(split, context, notes)
            rows, lengths = context[valid], valid.sum(axis=1)
        del context
        rows = _as_float32(key, lambda _: rows, notes)
        _check_finite(key, rows, np.repeat(np.arange(len(lengths)), lengths))
        _check_finite(self.key(split, self.layout.target), target, np.arange(len(target)))
        _check_longest(key, lengths)
        tmd = None
        if self.has_tmd:
            tmd = _as_float32(self.key(split, TMD), self._load, notes)
            _check_finite(self.key(split, TMD), tmd, np.arange(len(tmd)))
        return RawSplit(split, rows, lengths.astype(np.int64), target, tmd, notes)

    def _valid(self, split: str, context: np.ndarray, notes: list[str]) -> np.ndarray:
        """Bool (n, L): which context rows are data and not padding."""
        if self.layout.padding == "none":
            return np.ones(context.shape[:2], dtype=bool)
        if self.layout.padding == "zeros":
            return unpad_zeros(self.key(split, self.layout.context), context, notes)
        key = self.key(split, str(self.layout.mask))
        return unpad_mask(key, self._load(key), context, notes)

    def _load(self, key: str) -> np.ndarray:
        if key not in self.pickled:
            return self._file.array(key)
        try:
            with np.load(self.path, allow_pickle=True) as npz:
                array: np.ndarray = npz[key]
        except Exception as error:  # a foreign pickle raises anything
            raise DatasetError(
                f"key {key!r}: its pickle cannot be read ({type(error).__name__}: {error}); "
                "the file is damaged: copy or make it again"
            ) from error
        return array

    def _check_split(self, prefix: str) -> None:
        """Check the headers of one split against each other."""
        keys = [_key(prefix, stem) for stem in self.layout.stems]
        context, target = (self._headers[key] for key in keys[:2])
        n = context.shape[0] if context.shape else 0
        if not context.dtype.hasobject or len(context.shape) != 1:
            _check_header(keys[0], context, (n, -1, ROW_SHAPE))
        if n == 0:
            raise DatasetError(
                f"key {keys[0]!r}: {context} found, at least one example wanted; leave the split's "
                "keys out of the file if it has none"
            )
        _check_header(keys[1], target, (n, ROW_SHAPE), f"as {keys[0]!r} has {n} examples")
        if self.layout.mask:
            mask = self._headers[keys[2]]
            shape = context.shape[:2]
            if mask.dtype.kind not in "biuf" or mask.shape != shape:
                raise DatasetError(f"key {keys[2]!r}: {mask} found, bool or 0/1 {shape} wanted")
        if self.has_tmd:
            _check_header(_key(prefix, TMD), self._headers[_key(prefix, TMD)], (n, D_TMD))


def _key(prefix: str, stem: str) -> str:
    return f"{prefix}_{stem}" if prefix else stem


def _recognize(keys: list[str]) -> Layout:
    """The one layout that some of the keys belong to."""
    stems = {stem for key in keys if (stem := _stem(key))}
    found = [layout for layout in (PADDED, WINDOWS) if stems & {layout.context, layout.target}]
    if "masks" in stems:
        found.append(MASKED)
    elif stems & {"contexts", "targets"}:
        found.append(PLAIN_WINDOWS)
    if len(found) == 1:
        return found[0]
    known = "; ".join(
        f"{', '.join('[split_]' + s for s in layout.stems)} ({layout.title})" for layout in LAYOUTS
    )
    what = "no known layout" if not found else "the keys of several layouts mixed"
    raise DatasetError(
        f"{what}: keys found: {sorted(keys)}. Wanted are the keys of one layout, where [split_] is "
        f"train_, val_, test_ or nothing: {known}"
    )


def _stem(key: str) -> str:
    """The layouts' name that a key ends in, after "" or "<prefix>_"; "" if there is none."""
    names = {stem for layout in LAYOUTS for stem in layout.stems}
    fitting = [name for name in names if key == name or key.endswith("_" + name)]
    return max(fitting, key=len, default="")


def _prefixes(keys: list[str], layout: Layout) -> tuple[str, ...]:
    """Split prefixes in use ("" for none), each with all of its keys, in the order of `SPLITS`."""
    used = {
        key.removesuffix(stem).removesuffix("_")
        for key in keys
        if (stem := _stem(key)) in layout.stems
    }
    unknown = sorted(used - {"", *SPLITS})
    if unknown:
        raise DatasetError(
            f"the keys have the unknown prefixes {unknown}; train, val, test or none wanted. "
            f"Rename them; keys found: {sorted(keys)}"
        )
    if {"", "train"} <= used:
        raise DatasetError(
            f"both {layout.context!r} and 'train_{layout.context}' could be the training examples; "
            f"keep one of them. Keys found: {sorted(keys)}"
        )
    prefixes = tuple(p for p in ("", *SPLITS) if p in used)
    lacking = [_key(p, s) for p in prefixes for s in layout.stems if _key(p, s) not in keys]
    if lacking:
        raise DatasetError(
            f"layout {layout.title!r} ({', '.join(layout.stems)}) recognized, but the keys "
            f"{lacking} are missing; keys found: {sorted(keys)}"
        )
    return prefixes


def _has_tmd(keys: list[str], prefixes: Sequence[str]) -> bool:
    """Whether the splits have TMD arrays; all of them or none."""
    lacking = [_key(p, TMD) for p in prefixes if _key(p, TMD) not in keys]
    if lacking and len(lacking) < len(prefixes):
        raise DatasetError(
            f"TMD arrays for some splits only: the keys {lacking} are missing; add them, or leave "
            f"all TMD arrays out. Keys found: {sorted(keys)}"
        )
    return not lacking


def _check_header(key: str, found: Header, shape: tuple[int | str, ...], why: str = "") -> None:
    """Check a float array's shape; -1 fits any length of 1 or more, a string a vector's width."""
    fits = found.dtype.kind == "f" and len(found.shape) == len(shape)
    for size, wanted in zip(found.shape, shape, strict=False):
        if isinstance(wanted, str):
            fits = fits and size in (D_VECTOR, D_FUSED)
        else:
            fits = fits and (size == wanted or (wanted == -1 and size > 0))
    if not fits:
        text = ", ".join("L" if wanted == -1 else str(wanted) for wanted in shape)
        raise DatasetError(
            f"key {key!r}: {found} found, float32, float64 or float16 ({text}) wanted"
            + (f", {why}" if why else "")
        )


def _as_float32(key: str, load: Any, notes: list[str]) -> np.ndarray:
    array = load(key)
    if array.dtype == np.float32:
        return array
    notes.append(f"{key}: {array.dtype} brought to float32")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _check_finite(key: str, rows: np.ndarray, example: np.ndarray) -> None:
    """Refuse NaN and infinity; ``example`` says which example a row belongs to."""
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if len(bad):
        raise DatasetError(
            f"key {key!r}: NaN, infinity or a number beyond float32 in {len(bad)} of {len(rows)} "
            f"rows, the first in example {example[bad[0]]}; finite numbers wanted. Leave out these "
            "examples and save the file again"
        )


def _check_longest(key: str, lengths: np.ndarray) -> None:
    if lengths.max() > MAX_CONTEXT:
        i = int(lengths.argmax())
        raise DatasetError(
            f"key {key!r}: a context of {lengths[i]} rows found in example {i}, "
            f"{MAX_CONTEXT} or fewer wanted"
        )
