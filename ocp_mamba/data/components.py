"""Connected components: what belongs together when pairs of items do."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def smallest_of_component(n: int, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Number each item's connected component by the smallest item in it.

    Args:
        n: number of items, 0 to n - 1.
        one: integers ``(m,)``; item ``one[i]`` is connected to item ``other[i]``.
        other: integers ``(m,)``.

    Returns:
        int64 ``(n,)``.
    """
    edges = coo_array((np.ones(len(one), bool), (one, other)), shape=(n, n))
    _, label = connected_components(edges, directed=False)
    smallest = np.unique(label, return_index=True)[1]  # the first of each label is the smallest
    return smallest[label].astype(np.int64)
