from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
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


@given(seed=st.integers(0, 50), size=st.integers(1, 9), alpha=st.sampled_from([0.3, 1.0]))
@settings(max_examples=20, deadline=None)
def test_chains_are_mixed_in_pairs_where_both_have_a_step(seed, size, alpha):
    data = make_dataset(30, 20, seed)
    plain = list(batches(data, "train", size, shuffle_seed=seed, min_context=1))
    mixed = list(batches(data, "train", size, shuffle_seed=seed, min_context=1, mixup=alpha))
    bank = torch.from_numpy(data.bank)
    for a, b in zip(plain, mixed, strict=True):
        assert b.mix is not None
        for name in ("lengths", "inputs", "targets", "mask", "chain_ids", "all_targets"):
            assert torch.equal(getattr(a, name), getattr(b, name))
        assert torch.equal(a.mask, a.inputs >= 0)  # from a context of one concept on
        steps = set(zip(a.inputs[a.mask].tolist(), a.targets[a.mask].tolist(), strict=True))
        partners = a.targets.tolist()
        for row in range(len(a.chain_ids)):
            for t in range(a.inputs.shape[1]):
                w, other = float(b.mix.weight[row, t]), int(b.mix.targets[row, t])
                assert 0.5 <= w <= 1
                if w == 1:
                    assert torch.equal(b.vectors[row, t], a.vectors[row, t])
                    continue
                assert any(other == p[t] and other >= 0 for p in partners)
                rest = [i for i, o in steps if o == other]
                made = [F.normalize(w * a.vectors[row, t] + (1 - w) * bank[i], dim=0) for i in rest]
                assert any(torch.allclose(b.vectors[row, t], m, atol=1e-5) for m in made)


@pytest.mark.parametrize("size", [2, 3])
def test_processes_that_share_a_batch_draw_the_same_mixture(size):
    data = make_dataset(30, 20, 0)
    drawn = {"shuffle_seed": 3, "min_context": 1, "mixup": 1.0}
    for whole, *parts in zip(
        batches(data, "train", 8, **drawn),
        *(batches(data, "train", 8, share=(rank, size), **drawn) for rank in range(size)),
        strict=True,
    ):
        rows = {int(i): r for r, i in enumerate(whole.chain_ids)}
        for part in parts:
            for r, i in enumerate(part.chain_ids.tolist()):
                n = int(part.lengths[r])
                ours, theirs = part.mix, whole.mix
                assert torch.equal(ours.weight[r, :n], theirs.weight[rows[i], :n])
                assert torch.equal(ours.targets[r, :n], theirs.targets[rows[i], :n])
                assert torch.equal(part.vectors[r, :n], whole.vectors[rows[i], :n])
