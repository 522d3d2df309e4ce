"""The arrays of a dataset, without rules: what validation and the fingerprint look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class DatasetArrays:
    """The content of a dataset as plain arrays, checked by nobody.

    Attributes:
        bank: float32 (n_concepts, 768), unit rows.
        texts: unicode (n_concepts,), one text per bank row.
        chain_values: int32, the bank ids of all chains, one after the other.
        chain_offsets: int64 (n_chains + 1,), where each chain starts in ``chain_values``.
        chain_source: uint8 or uint16 (n_chains,), index into ``meta["sources"]``.
        chain_tmd: float32 (n_chains, 16), or None for a dataset without TMD codes.
        split: uint8 (n_chains,), 0 train, 1 val, 2 test.
        meta: schema_version, encoder {name, weight_hash}, builder_version, sources, licence, seed,
            counts; all of it JSON.
        chain_first: uint8 (n_chains,), index in the chain of its first target: 2 for built data.
        bank_dtype: "float32" or "float16", the precision of the bank in the file.
        chain_relation: uint16, as long as ``chain_values``, or None: by which relation each concept
            follows the one before it, 1 + an index into ``meta["relations"]``; 0 for unknown, as at
            the start of a chain.
        chain_confidence: float32, as long, 0..1: how sure that relation is; None where every known
            relation is sure.
    """

    bank: np.ndarray
    texts: np.ndarray
    chain_values: np.ndarray
    chain_offsets: np.ndarray
    chain_source: np.ndarray
    chain_tmd: np.ndarray | None
    split: np.ndarray
    meta: dict[str, Any]
    chain_first: np.ndarray
    bank_dtype: str = "float32"
    chain_relation: np.ndarray | None = None
    chain_confidence: np.ndarray | None = None

    def release(self) -> None:
        """Drop from memory what was read from the disk; arrays in memory stay."""
