"""Rows that are the same but for rounding."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.analysis.duplicates import SAME_DISTANCE, find_duplicates


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_rows_are_joined_when_and_only_when_near(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((20, 32))
    owner = np.concatenate([np.arange(20), rng.integers(0, 20, 40)])
    noise = rng.standard_normal((60, 32))
    noise *= share * SAME_DISTANCE * 0.45 / np.linalg.norm(noise, axis=1, keepdims=True)
    unit = base[owner] / np.linalg.norm(base, axis=1, keepdims=True)[owner] + noise
    unit = (unit / np.linalg.norm(unit, axis=1, keepdims=True)).astype(np.float32)
    root, largest = find_duplicates(unit)
    assert root.tolist() == owner.tolist()
    assert largest <= SAME_DISTANCE


def test_a_collapsed_bank_is_joined_fast_and_a_chain_of_neighbours_is_not_one_concept() -> None:
    noise = 1e-6 * np.random.default_rng(0).standard_normal((20_000, 64))
    unit = (np.eye(64)[0] + noise).astype(np.float32)
    root, _ = find_duplicates(unit)
    assert (root == 0).all()
    angles = np.arange(0, 10) * 0.8 * SAME_DISTANCE
    arc = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    root, largest = find_duplicates(arc)
    assert largest <= SAME_DISTANCE
    assert root.tolist() == [0, 0, *range(2, 10)]
