"""Half of a dataset: fewer concepts, whole families, and every array true to its chain."""

import numpy as np
import pytest
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.analysis.subset import draw_subset
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.split import chain_groups
from ocp_mamba.errors import DatasetError


@given(seed=st.integers(0, 200), share=st.floats(0.1, 0.7), relations=st.booleans())
@settings(max_examples=25, deadline=None)
def test_each_chain_is_the_wholes_and_no_other_concept_is_there(seed, share, relations):
    whole = make_dataset(n_chains=60, n_concepts=200, seed=seed, relations=relations)
    part = draw_subset(whole, share, seed)
    data = part.dataset
    assert 0 < data.n_chains < whole.n_chains
    used = np.unique(whole.chain_values)
    assert share * len(used) <= data.n_concepts < share * len(used) + 9, "one family over at most"
    assert set(data.chain_values.tolist()) == set(range(data.n_concepts))
    for i, origin in enumerate(part.chains.tolist()):
        ids, there = data.chain(i), whole.chain(origin)
        np.testing.assert_array_equal(data.texts[ids], whole.texts[there])
        np.testing.assert_array_equal(data.bank[ids], whole.bank[there])
        assert data.split[i] == whole.split[origin]
        assert data.chain_source[i] == whole.chain_source[origin]
        np.testing.assert_array_equal(data.chain_tmd[i], whole.chain_tmd[origin])
        if relations:
            places = [np.arange(d.chain_offsets[c], d.chain_offsets[c + 1])
                      for d, c in ((data, i), (whole, origin))]  # fmt: skip
            np.testing.assert_array_equal(data.steps(places[0]), whole.steps(places[1]))


def test_families_stay_whole_and_the_draw_is_the_seeds():
    rng = np.random.default_rng(0)
    rows = [[i, 40 + i % 8, 50 + i % 4, 60] for i in range(40)]  # five siblings a parent
    whole = make_dataset(
        n_chains=40,
        n_concepts=61,
        chain_values=np.array(rows, np.int32).reshape(-1),
        chain_offsets=np.arange(0, 161, 4),
        split=rng.choice(3, 40).astype(np.uint8),
    )
    part = draw_subset(whole, 0.5, seed=3)
    groups = chain_groups(whole.chain_values, whole.chain_offsets, join_siblings=True)
    taken = set(groups[part.chains].tolist())
    left = np.setdiff1d(np.arange(40), part.chains)
    assert not taken & set(groups[left].tolist())
    again, other = draw_subset(whole, 0.5, seed=3), draw_subset(whole, 0.5, seed=4)
    assert again.dataset.fingerprint == part.dataset.fingerprint
    assert other.dataset.fingerprint != part.dataset.fingerprint
    assert part.dataset.meta["subset"] == {"of": whole.fingerprint, "share": 0.5, "seed": 3}


def test_it_saves_and_loads_as_any_dataset(tmp_path):
    part = draw_subset(make_dataset(n_chains=60, n_concepts=200), 0.5).dataset
    part.save(tmp_path / "half.npz")
    assert Dataset.load(tmp_path / "half.npz").fingerprint == part.fingerprint


def test_what_cannot_be_halved_says_so():
    one_family = make_dataset(n_chains=4, chain_values=np.array([0, 1, 2] * 4, np.int32),
                              chain_offsets=np.arange(0, 13, 3))  # fmt: skip
    with pytest.raises(DatasetError, match="cannot be halved"):
        draw_subset(one_family, 0.5)
    with pytest.raises(DatasetError, match="share must be above 0"):
        draw_subset(one_family, 1.0)
