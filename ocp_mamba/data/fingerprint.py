"""The fingerprint of a dataset's content, computed a chunk at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ocp_mamba.data.arrays import DatasetArrays

CHUNK_BYTES = 1 << 25


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Pieces of about 32 MiB of an array, in order, along its first axis."""
    rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def fingerprint_of(dataset: DatasetArrays, stored: Callable[[np.ndarray], np.ndarray]) -> str:
    """SHA-256 of the content, hex: the same for any compression, file name, text width or shards.

    Args:
        dataset: in memory or mapped.
        stored: brings rows of the bank ``(m, 768)`` to the file's precision, each on its own.
    """
    digest = hashlib.sha256()
    parts: dict[str, tuple[np.ndarray | None, Callable[[np.ndarray], np.ndarray]]] = {
        "bank": (dataset.bank, stored),
        "chain_values": (dataset.chain_values, _as_is),
        "chain_offsets": (dataset.chain_offsets, _as_is),
        "chain_source": (dataset.chain_source, lambda rows: rows.astype(np.uint16)),
        "chain_tmd": (dataset.chain_tmd, _as_is),
        "chain_first": (dataset.chain_first, _as_is),
        "split": (dataset.split, _as_is),
    }
    for key in ("chain_relation", "chain_confidence"):  # older files have the hash they had
        if getattr(dataset, key) is not None:
            parts[key] = (getattr(dataset, key), _as_is)
    for key, (array, convert) in parts.items():
        if array is None:
            digest.update(f"{key} absent\n".encode())
            continue
        dtype = convert(array[:1]).dtype.newbyteorder("<")
        digest.update(f"{key} {dtype.str} {array.shape}\n".encode())
        for chunk in chunks(array):
            digest.update(np.ascontiguousarray(convert(chunk), dtype=dtype).data)
            dataset.release()
    for text in _names(dataset):
        digest.update(text.encode())
    dataset.release()
    return digest.hexdigest()


def _as_is(rows: np.ndarray) -> np.ndarray:
    return rows


def _names(dataset: DatasetArrays) -> Iterator[str]:
    """Pieces of ``json.dumps({"relations"?, "sources", "texts"}, sort_keys=True)``."""
    names: dict[str, Any] = {"sources": dataset.meta["sources"]}
    if dataset.chain_relation is not None:
        names["relations"] = dataset.meta["relations"]
    yield json.dumps(names, sort_keys=True)[:-1] + ', "texts": ['
    between = ""
    for chunk in chunks(dataset.texts):
        yield between + json.dumps(chunk.tolist())[1:-1]
        between = ", "
    yield "]}"
