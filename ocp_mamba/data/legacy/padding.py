"""Where the contexts of older `.npz` files end: ragged arrays, zero rows, masks."""

from __future__ import annotations

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.errors import DatasetError

D_FUSED = D_TMD + D_VECTOR
"""Width of a vector with its TMD codes appended."""

ROW_SHAPE = f"{D_VECTOR} (or {D_FUSED} with TMD)"
"""Wanted width of a row, for messages."""


def ragged_rows(key: str, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and lengths of an object array whose items are (L, width) arrays."""
    items = [np.asarray(item) for item in contexts]
    widths = {item.shape[1] for item in items if item.ndim == 2}
    for i, item in enumerate(items):
        if item.ndim != 2 or item.dtype.kind != "f" or item.shape[1] not in (D_VECTOR, D_FUSED):
            raise DatasetError(
                f"key {key!r}: {item.dtype} {item.shape} found in example {i}, "
                f"float (L, {ROW_SHAPE}) wanted"
            )
    if len(widths) > 1:
        raise DatasetError(
            f"key {key!r}: contexts of widths {sorted(widths)} found, one width wanted"
        )
    return np.concatenate(items), np.array([len(item) for item in items], dtype=np.int64)


def unpad_zeros(key: str, context: np.ndarray, notes: list[str]) -> np.ndarray:
    """Bool (n, L): rows up to (or, padded on the left, from) the padding of all-zero rows."""
    filled = np.any(context, axis=2)
    some = filled.any(axis=1)
    left, right = (int((some & ~filled[:, end]).sum()) for end in (0, -1))
    if min(left, right) * 10 > max(left, right):
        raise DatasetError(
            f"key {key!r}: contexts begin with all-zero rows in {left} examples and end with them "
            f"in {right}; padding on one side wanted. Pad on the right, or save masks "
            "([split_]contexts, [split_]targets, [split_]masks)"
        )
    L = context.shape[1]
    steps = np.arange(L)
    if left > right:
        notes.append(f"{key}: padded on the left with zero rows in {left} examples")
        start = np.where(some, filled.argmax(axis=1), L)
        return steps >= start[:, None]
    if right:
        notes.append(f"{key}: padded on the right with zero rows in {right} examples")
    stop = np.where(some, L - filled[:, ::-1].argmax(axis=1), 0)
    return steps < stop[:, None]


def unpad_mask(key: str, mask: np.ndarray, context: np.ndarray, notes: list[str]) -> np.ndarray:
    """The mask as bool (n, L), once it is known to be one run that touches an end."""
    if not np.isin(mask, (0, 1)).all():
        other = mask[~np.isin(mask, (0, 1))]
        raise DatasetError(f"key {key!r}: the value {other[0]} found, 0 and 1 wanted")
    valid = mask.astype(bool)
    L = valid.shape[1]
    steps, lengths = np.arange(L), valid.sum(axis=1)[:, None]
    right = (valid == (steps < lengths)).all(axis=1)
    left = (valid == (steps >= L - lengths)).all(axis=1)
    holes = np.flatnonzero(~(right | left))
    if len(holes):
        raise DatasetError(
            f"key {key!r}: masks with holes in {len(holes)} examples, the first in example "
            f"{holes[0]}; 1 for the rows from the start of the context, then 0, wanted"
        )
    filled = np.any(context, axis=2)
    if (filled & ~valid).any() and not (filled & valid).any():
        raise DatasetError(
            f"key {key!r}: every row that the masks call valid is all zeros and the others are "
            "not; 1 for data and 0 for padding wanted, so turn the masks over"
        )
    if not right.all():
        notes.append(f"{key}: padded on the left in {int((~right).sum())} examples")
    return valid
