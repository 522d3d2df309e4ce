"""Hard negatives out of the bank: a case by hand, and what holds for any dataset."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.config import D_VECTOR, ModelConfig, TrainConfig
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards.convert import shard
from ocp_mamba.errors import ConfigError
from ocp_mamba.model.memory_head import MemoryHead
from ocp_mamba.training import negatives
from ocp_mamba.training.negatives import build_negative_pool, mine_negatives

SOFTMAX = TrainConfig(infonce_weight=0.05)
BATCH = replace(SOFTMAX, infonce_candidates="batch")


def on_a_circle(degrees):
    """Bank rows at these angles: how near two are can be read off."""
    bank = np.zeros((len(degrees), D_VECTOR), np.float32)
    angles = np.deg2rad(np.asarray(degrees, np.float64))
    bank[:, 0], bank[:, 1] = np.cos(angles), np.sin(angles)
    return bank


def circle(degrees, chains, split):
    values = np.concatenate(chains).astype(np.int32)
    return make_dataset(
        n_chains=len(chains),
        n_concepts=len(degrees),
        bank=on_a_circle(degrees),
        chain_values=values,
        chain_offsets=np.cumsum([0, *map(len, chains)]).astype(np.int64),
        split=np.array(split, np.uint8),
    )


def of(mined, last, target):
    return mined.of(torch.tensor([last]), torch.tensor([target]))[0].tolist()


def test_by_hand_the_nearest_rows_that_do_not_follow_the_prefix_end():
    # 0 is the target of (6, 7); 1 follows 7 too, in train; 2 follows it in val only;
    # 3 is the target's twin, 4 and 5 are further away
    degrees = [0, 5, 10, 0, 20, 30, 100, 120]
    data = circle(degrees, [[6, 7, 0], [6, 7, 1], [6, 7, 2]], [0, 0, 1])
    assert of(mine_negatives(data, 3), 7, 0) == [2, 4, 5]
    assert of(mine_negatives(data, 3), 7, 1) == [2, 4, 5], "3 cannot be told from 0"
    assert of(mine_negatives(data, 8), 7, 0) == [2, 4, 5, 6, 7, -1, -1, -1], "the bank has no more"


def test_a_concept_that_follows_another_prefix_end_is_a_negative():
    data = circle([0, 5, 90, 120, 150], [[2, 3, 0], [2, 4, 1]], [0, 0])
    mined = mine_negatives(data, 1)
    assert of(mined, 3, 0) == [1]
    assert of(mined, 4, 1) == [0]


def test_a_pair_that_was_not_mined_is_refused():
    mined = mine_negatives(make_dataset(seed=3), 2)
    with pytest.raises(ValueError, match="examples of the train split only"):
        mined.of(torch.tensor([0]), torch.tensor([10_000]))


@given(seed=st.integers(0, 1000), k=st.integers(1, 12), n_concepts=st.integers(9, 40))
@settings(max_examples=25, deadline=None)
def test_for_each_example_exactly_the_nearest_that_may_be(seed, k, n_concepts):
    data = make_dataset(n_chains=30, n_concepts=n_concepts, seed=seed)
    examples = data.examples("train")
    mined = mine_negatives(data, k)
    found = mined.of(torch.from_numpy(examples.last).long(), torch.from_numpy(examples.target))
    follows = {}
    for last, target in zip(examples.last.tolist(), examples.target.tolist(), strict=True):
        follows.setdefault(last, set()).add(target)
    for last, target, ids in zip(examples.last, examples.target, found.tolist(), strict=True):
        cosines = data.bank @ data.bank[target]
        may = [i for i in range(n_concepts) if i not in follows[last]]
        wanted = sorted(may, key=lambda i: -cosines[i])[:k]
        assert ids[: len(wanted)] == wanted
        assert ids[len(wanted) :] == [-1] * (k - len(wanted))


def test_candidates_are_the_batchs_targets_or_all_of_trains():
    data = make_dataset(seed=5)
    of_train = np.unique(data.examples("train").target)
    batch = torch.from_numpy(of_train[[3, 1, 3]]).long()
    own = build_negative_pool(data, BATCH).candidates(batch)
    assert own.tolist() == sorted(of_train[[1, 3]])
    narrow = build_negative_pool(data, replace(SOFTMAX, min_context=2)).candidates(batch)
    assert narrow.tolist() == of_train.tolist()
    steps = np.unique(data.examples("train", min_context=1).target)
    assert build_negative_pool(data, SOFTMAX).candidates(batch).tolist() == steps.tolist()
    assert len(steps) > len(of_train)
    assert build_negative_pool(data, TrainConfig(infonce_weight=0.0)) is negatives.NO_NEGATIVES


def test_what_a_model_remembers_is_one_softmax_only_where_it_is_all_the_candidates(monkeypatch):
    data, config = make_dataset(seed=5), SOFTMAX
    everything = build_negative_pool(data, config).targets
    roomy, tight = (MemoryHead(ModelConfig(n_memory=n)) for n in (len(everything), 5))
    assert build_negative_pool(data, config, roomy).is_memory
    torch.testing.assert_close(roomy.memory, torch.from_numpy(data.bank)[everything])
    assert not build_negative_pool(data, config, tight).is_memory
    assert len(tight.memory) == 5
    for other in (replace(config, infonce_weight=0.0), replace(config, infonce_candidates="batch")):
        roomy.set_memory(torch.zeros(0, D_VECTOR))
        negative_pool = build_negative_pool(data, other, roomy)
        assert (negative_pool.is_memory, negative_pool.targets) == (False, None)
        assert len(roomy.memory) == len(everything)
    monkeypatch.setattr(negatives, "MAX_CANDIDATES", 4)
    assert not build_negative_pool(data, config, roomy).is_memory


def test_of_too_many_train_targets_some_are_drawn_the_same_for_the_same_batch(monkeypatch):
    data = make_dataset(seed=5)
    negative_pool = build_negative_pool(data, SOFTMAX)
    monkeypatch.setattr(negatives, "MAX_CANDIDATES", 4)
    batch, other = negative_pool.targets[[0, 2]], negative_pool.targets[[1, 2]]
    drawn = negative_pool.candidates(batch)
    assert 2 < len(drawn) <= 6
    assert set(batch.tolist()) <= set(drawn.tolist()) <= set(negative_pool.targets.tolist())
    assert drawn.tolist() == sorted(drawn.tolist())
    assert torch.equal(drawn, negative_pool.candidates(batch))
    assert set(drawn.tolist()) != set(negative_pool.candidates(other).tolist())


@pytest.mark.parametrize("limit", ["MAX_MINED", "MAX_SEARCHED"])
def test_what_would_not_fit_into_memory_is_refused_with_its_size(monkeypatch, limit):
    data = make_dataset()
    monkeypatch.setattr(negatives, limit, 29)
    with pytest.raises(ConfigError, match=r"at most .*29.* this dataset has .* and 30: train wi"):
        mine_negatives(data, 3)


def test_of_a_bank_on_the_disk_the_candidates_vectors_are_kept_in_memory(tmp_path, monkeypatch):
    data = make_dataset(200, 90, 3)
    data.save(tmp_path / "data.npz")
    shard(tmp_path / "data.npz", tmp_path / "data")
    mapped, bank = load_dataset(tmp_path / "data"), torch.from_numpy(data.bank)
    config = SOFTMAX
    whole, kept = build_negative_pool(data, config), build_negative_pool(mapped, config)
    assert whole.rows is None
    assert torch.equal(kept.targets, whole.targets)
    assert torch.equal(kept.rows, bank[whole.targets])
    monkeypatch.setattr(negatives, "MAX_KEPT", 20)
    drawn = [build_negative_pool(mapped, replace(SOFTMAX, seed=seed)) for seed in (0, 0, 1)]
    assert torch.equal(drawn[0].targets, drawn[1].targets)
    assert not torch.equal(drawn[0].targets, drawn[2].targets)
    monkeypatch.setattr(negatives, "MAX_CANDIDATES", 10)
    batch = whole.targets[::3]
    for negative_pool in (whole, kept, *drawn):
        ids = negative_pool.candidates(batch)
        assert torch.isin(batch, ids).all()
        assert torch.isin(ids, whole.targets).all()
        assert torch.equal(negative_pool.vectors(ids, bank), bank[ids])
        assert torch.equal(negative_pool.vectors(torch.arange(90), bank), bank)
    assert len(drawn[0].targets) == len(drawn[0].rows) == 20
