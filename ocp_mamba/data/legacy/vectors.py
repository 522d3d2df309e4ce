"""Imported vectors: fused TMD codes cut off, different rows numbered."""

from __future__ import annotations

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.data.analysis.duplicates import norms_of
from ocp_mamba.data.legacy.layouts import RawSplit
from ocp_mamba.data.legacy.padding import D_FUSED
from ocp_mamba.errors import DatasetError

UNIT_TOLERANCE = 2e-3
"""How far a norm may be from 1 for a row to count as unit: float16 stays well within, and leaving
16 of 784 unit numbers out, or taking 16 others in, does not."""


class VectorNumbers:
    """Numbers different float32 rows in the order of their first appearance."""

    def __init__(self) -> None:
        """Start with no rows."""
        self._ids: dict[bytes, int] = {}

    def number(self, rows: np.ndarray) -> np.ndarray:
        """Numbers of float32 rows (n, 768), int64 (n,); equal bits get equal numbers."""
        data, width = np.ascontiguousarray(rows).tobytes(), D_VECTOR * 4
        ids = self._ids
        starts = range(0, len(data), width)
        numbers = [ids.setdefault(data[i : i + width], len(ids)) for i in starts]
        return np.array(numbers, dtype=np.int64)

    def rows(self) -> np.ndarray:
        """All different rows, float32 (n, 768)."""
        return np.frombuffer(b"".join(self._ids), dtype=np.float32).reshape(-1, D_VECTOR)


def split_fused(raw: RawSplit, context_key: str, target_key: str, end: str | None) -> str | None:
    """Cut 784-D rows into vectors and TMD codes, in place; 768-D rows stay.

    The TMD codes of an example are those of its last context row, unless the file has TMD arrays;
    the target's are left out, as they belong to the answer.

    Args:
        raw: a split; its rows and targets become 768-D, its notes tell what was done.
        context_key: key of the contexts, for messages.
        target_key: key of the targets, for messages.
        end: where the 768-D vector is, "first" or "last"; None finds out by the norms.

    Returns:
        The end that was used, or None where no row is 784-D.

    Raises:
        DatasetError: the norms do not tell which end is the vector.
    """
    fused = {
        key: rows
        for key, rows in ((context_key, raw.rows), (target_key, raw.target))
        if rows.shape[1] == D_FUSED
    }
    if not fused:
        return None
    how = "as told"
    if end is None:
        how = "found by its unit norm"
        ends = {_vector_end(key, rows) for key, rows in fused.items()}
        if len(ends) > 1:
            raise DatasetError(
                f"keys {', '.join(fused)}: the unit 768-D vector comes first in one and last in "
                "the other; one order wanted. Save them again with the vector first"
            )
        end = ends.pop()
    raw.notes += [f"{key}: 784-D rows, the 768-D vector comes {end} ({how})" for key in fused]
    vector = slice(0, D_VECTOR) if end == "first" else slice(D_TMD, None)
    codes = slice(D_VECTOR, None) if end == "first" else slice(0, D_TMD)
    if context_key in fused:
        _take_tmd(raw, raw.rows[:, codes], context_key)
        raw.rows = np.ascontiguousarray(raw.rows[:, vector])
    if target_key in fused:
        raw.target = np.ascontiguousarray(raw.target[:, vector])
    return end


def _vector_end(key: str, rows: np.ndarray) -> str:
    """Which end of 784-D rows has unit norm, while the whole row has not."""
    rows = rows[rows.any(axis=1)]
    together = np.abs(norms_of(rows) - 1) < UNIT_TOLERANCE
    shares = {}
    for end, vector, codes in (
        ("first", rows[:, :D_VECTOR], rows[:, D_VECTOR:]),
        ("last", rows[:, D_TMD:], rows[:, :D_TMD]),
    ):
        unit = np.abs(norms_of(vector) - 1) < UNIT_TOLERANCE
        fits = unit & ~(together & codes.any(axis=1))
        shares[end] = float(fits.mean()) if len(rows) else 0.0
    fitting = [end for end, share in shares.items() if share > 0.99]
    if len(fitting) == 1 and min(shares.values()) < 0.5:
        return fitting[0]
    raise DatasetError(
        f"key {key!r}: (..., {D_FUSED}) found, and which end is the 768-D vector cannot be told: "
        f"the first 768 numbers alone have unit norm in {shares['first']:.0%} of the rows, the "
        f"last 768 in {shares['last']:.0%}; one end at 100% wanted. Say where the vector is: "
        "--fused first or --fused last"
    )


def _take_tmd(raw: RawSplit, codes: np.ndarray, key: str) -> None:
    """Make the last context row's codes (R, 16) the example's, where there are no others."""
    if raw.tmd is not None:
        raw.notes.append(f"{key}: the TMD part of the 784-D rows was left out for the TMD array")
        return
    raw.tmd = np.zeros((len(raw.lengths), D_TMD), dtype=np.float32)
    some = raw.lengths > 0
    raw.tmd[some] = codes[(np.cumsum(raw.lengths) - 1)[some]]
    example = np.repeat(np.arange(len(raw.lengths)), raw.lengths)
    differs = (codes != raw.tmd[example]).any(axis=1)
    if differs.any():
        raw.notes.append(
            f"{key}: the TMD codes change within {len(np.unique(example[differs]))} contexts; the "
            "last row's were taken"
        )
