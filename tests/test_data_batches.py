from __future__ import annotations

import numpy as np
import pytest
import torch
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.data.batches import batches, n_batches


@given(
    seed=st.integers(0, 100),
    size=st.integers(1, 17),
    shuffle=st.none() | st.integers(0, 5),
    split=st.sampled_from(["train", "val", "test"]),
)
@settings(max_examples=30, deadline=None)
def test_every_chain_once_and_every_field_true_to_it(seed, size, shuffle, split):
    data = make_dataset(30, 20, seed)
    first = np.minimum(np.arange(30) % 3 + 1, data.lengths - 1).astype(np.uint8)
    data = make_dataset(30, 20, seed, chain_first=first)
    found = list(batches(data, split, size, shuffle_seed=shuffle))
    assert len(found) == n_batches(data, split, size)
    ids = [int(i) for b in found for i in b.chain_ids]
    assert sorted(ids) == data.chains_in(split).tolist()
    assert sum(int(b.mask.sum()) for b in found) == data.n_examples(split)
    for b in found:
        width = int(b.lengths.max())
        assert b.vectors.shape == (len(b.chain_ids), width, 768)
        assert b.vectors.dtype == torch.float32
        for row, i in enumerate(b.chain_ids.tolist()):
            chain = data.chain(i)
            n = len(chain) - 1
            assert b.lengths[row] == n
            pad = [-1] * (width - n)
            assert b.inputs[row].tolist() == chain[:-1].tolist() + pad
            assert b.targets[row].tolist() == chain[1:].tolist() + pad
            assert b.mask[row].tolist() == [first[i] <= t + 1 <= n for t in range(width)]
            np.testing.assert_array_equal(b.vectors[row, :n].numpy(), data.bank[chain[:-1]])
            assert not b.vectors[row, n:].any()
            np.testing.assert_array_equal(b.tmd[row].numpy(), data.chain_tmd[i])


def test_masked_positions_are_the_examples():
    data = make_dataset(200)
    wanted = data.examples("train")
    found = []
    for b in batches(data, "train", 16, shuffle_seed=3):
        row, t = torch.nonzero(b.mask, as_tuple=True)
        found += zip(
            b.chain_ids[row].tolist(),
            (t + 1).tolist(),
            b.inputs[row, t].tolist(),
            b.targets[row, t].tolist(),
            strict=True,
        )
    columns = (wanted.chain, wanted.position, wanted.last, wanted.target)
    assert sorted(found) == list(zip(*(c.tolist() for c in columns), strict=True))


def ids_of(data, **kwargs) -> list[list[int]]:
    return [b.chain_ids.tolist() for b in batches(data, "train", 8, **kwargs)]


def test_order_comes_from_the_seed_alone():
    data = make_dataset(300)
    assert ids_of(data, shuffle_seed=1) == ids_of(data, shuffle_seed=1)
    assert ids_of(data, shuffle_seed=1) != ids_of(data, shuffle_seed=2)
    assert ids_of(data) == ids_of(data)


def test_buckets_pad_little():
    data = make_dataset(3000, max_length=15)
    for seed in (None, 0):
        cells = used = 0
        for b in batches(data, "train", 32, shuffle_seed=seed):
            cells += b.inputs.numel()
            used += int(b.lengths.sum())
        assert used / cells > 0.95


def test_shuffled_batches_do_not_run_from_short_to_long():
    data = make_dataset(3000, max_length=15)
    widths = [b.inputs.shape[1] for b in batches(data, "train", 16, shuffle_seed=0)]
    steps = np.arange(len(widths))
    assert abs(np.corrcoef(steps, widths)[0, 1]) < 0.4


def test_given_bank_is_used_and_checked():
    data = make_dataset()
    doubled = torch.from_numpy(data.bank) * 2
    plain, twice = next(batches(data, "train", 4)), next(batches(data, "train", 4, bank=doubled))
    torch.testing.assert_close(twice.vectors, plain.vectors * 2)
    with pytest.raises(ValueError, match=r"bank \(30, 700\) found, \(30, 768\) wanted"):
        next(batches(data, "train", 4, bank=doubled[:, :700]))


def test_without_tmd_and_with_an_empty_split():
    data = make_dataset(tmd=False, split=np.zeros(40, np.uint8))
    assert next(batches(data, "train", 4)).tmd is None
    assert list(batches(data, "val", 4)) == []
    assert n_batches(data, "val", 4) == 0


def test_bad_arguments():
    data = make_dataset()
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        next(batches(data, "train", 0))
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        n_batches(data, "dev", 4)
