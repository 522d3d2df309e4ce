"""Older npz files of each layout, made on the spot."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.data.dataset import SPLITS, Dataset

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((40, 768))
VECTORS = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)
CODES = RNG.standard_normal((40, 16)).astype(np.float32)

Row = tuple[tuple[int, ...], int]
Arrays = dict[str, Any]


def rows_of(seed: int, n: int = 12, longest: int = 5) -> list[Row]:
    rng = np.random.default_rng(seed)
    contexts = [tuple(rng.integers(0, 40, rng.integers(1, longest + 1)).tolist()) for _ in range(n)]
    contexts[0] = tuple(range(longest))  # so that the longest context has `longest` rows
    return [(context, int(rng.integers(0, 40))) for context in contexts]


def targets_of(rows: list[Row]) -> np.ndarray:
    return VECTORS[[target for _, target in rows]]


def padded(rows: list[Row], left: bool = False) -> np.ndarray:
    longest = max(len(context) for context, _ in rows)
    out = np.zeros((len(rows), longest, 768), dtype=np.float32)
    for row, (context, _) in zip(out, rows, strict=True):
        part = slice(longest - len(context), None) if left else slice(0, len(context))
        row[part] = VECTORS[list(context)]
    return out


def masks_of(rows: list[Row]) -> np.ndarray:
    longest = max(len(context) for context, _ in rows)
    return np.arange(longest) < np.array([[len(context)] for context, _ in rows])


def ragged(rows: list[Row]) -> np.ndarray:
    out = np.empty(len(rows), dtype=object)
    out[:] = [VECTORS[list(context)] for context, _ in rows]
    return out


def rows_by_split(longest: int = 5) -> dict[str, list[Row]]:
    return {split: rows_of(seed, longest=longest) for seed, split in enumerate(SPLITS)}


def padded_file(by_split: dict[str, list[Row]]) -> Arrays:
    arrays: Arrays = {}
    for split, rows in by_split.items():
        arrays[f"{split}_context"] = padded(rows)
        arrays[f"{split}_target"] = targets_of(rows)
        arrays[f"{split}_tmd"] = CODES[: len(rows)].copy()
    return arrays


def masked_file(by_split: dict[str, list[Row]]) -> Arrays:
    arrays: Arrays = {}
    for split, rows in by_split.items():
        arrays[f"{split}_contexts"] = padded(rows)
        arrays[f"{split}_targets"] = targets_of(rows)
        arrays[f"{split}_masks"] = masks_of(rows)
    return arrays


def full_windows(n: int, length: int = 5, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, 40, (n, length + 1)).tolist()
    return [(tuple(draw[:-1]), draw[-1]) for draw in draws]


def window_file(rows: list[Row], names: tuple[str, str], prefix: str = "") -> Arrays:
    return {prefix + names[0]: padded(rows), prefix + names[1]: targets_of(rows)}


WINDOW_NAMES = ("context_sequences", "target_vectors")


def save(path: Path, arrays: Arrays) -> Path:
    file = path / "old.npz"
    np.savez(file, **arrays)
    return file


def examples_in(dataset: Dataset, split: str) -> Counter[Row]:
    """The dataset's examples, as rows of VECTORS found by their vectors."""
    known = np.argmax(dataset.bank @ VECTORS.T, axis=1)
    assert np.allclose(dataset.bank, VECTORS[known], atol=1e-3)
    examples = dataset.examples(split)
    return Counter(
        (tuple(known[dataset.chain(c)[:k]].tolist()), int(known[target]))
        for c, k, target in zip(examples.chain, examples.position, examples.target, strict=True)
    )


def assert_imported(dataset: Dataset, by_split: dict[str, list[Row]]) -> None:
    for split, rows in by_split.items():
        assert examples_in(dataset, split) == Counter(rows)


def fuse(vectors: np.ndarray, codes: np.ndarray, end: str) -> np.ndarray:
    parts = [vectors, codes] if end == "first" else [codes, vectors]
    return np.concatenate(parts, axis=-1)
