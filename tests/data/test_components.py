from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.components import smallest_of_component


@given(st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)), max_size=15)
    )
))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_each_item_gets_the_smallest_item_that_it_is_connected_to(drawn):
    n, pairs = drawn
    wanted = list(range(n))
    for _ in range(n):
        for a, b in pairs:
            wanted[a] = wanted[b] = min(wanted[a], wanted[b])
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    found = smallest_of_component(n, one, other)
    assert found.dtype == np.int64
    assert found.tolist() == wanted


def test_without_items_or_pairs():
    none = np.zeros(0, np.int64)
    assert smallest_of_component(0, none, none).tolist() == []
    assert smallest_of_component(3, none, none).tolist() == [0, 1, 2]
