"""What a model learnt from, as hashes: exact or in a Bloom filter, of a file or a folder."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from data_maker import make_dataset

from ocp_mamba.data import load_dataset
from ocp_mamba.data.analysis import learnt as module
from ocp_mamba.data.analysis.leakage import strata
from ocp_mamba.data.analysis.learnt import BloomFilter, ExactHashes, Learnt, learnt_from
from ocp_mamba.data.analysis.sample import EvalLimits, evaluation_part
from ocp_mamba.data.dataset import Examples
from ocp_mamba.data.hashing import extend, prefix_hashes, text_hashes
from ocp_mamba.data.shards.convert import shard
from ocp_mamba.errors import DatasetError

DATA = make_dataset(n_chains=200, n_concepts=60, seed=3)


def test_texts_are_compared_in_a_normal_form() -> None:
    same = text_hashes(["Sand  tiger ", "sand tiger", "SAND TIGER", "\uff53and\u00a0tiger"])
    assert len(set(same.tolist())) == 1
    assert len(set(text_hashes(["café", "cafe\u0301"]).tolist())) == 1
    assert len(set(text_hashes(["sand tiger", "sandtiger", "tiger sand"]).tolist())) == 3


def test_a_sequence_is_hashed_by_its_texts_in_their_order() -> None:
    a, b, c = text_hashes(["a", "b", "c"]).reshape(3, 1)
    start = np.zeros(1, np.uint64)
    abc = extend(extend(extend(start, a), b), c)
    found = prefix_hashes(np.concatenate([a, b, c, a, c, b]), np.array([0, 3]), np.array([3, 3]))
    assert found[2] == abc[0]
    assert len(set(found.tolist())) == 5, "both begin with a, and then differ"


def contexts(examples: Examples) -> list[tuple[int, ...]]:
    """Each example's context and target, as bank ids."""
    both = zip(examples.chain.tolist(), examples.position.tolist(), strict=True)
    return [tuple(DATA.chain(chain)[: k + 1].tolist()) for chain, k in both]


@pytest.mark.parametrize("least", [None, 1, 2, 4])
def test_what_is_learnt_is_found_again_and_nothing_else(least: int | None) -> None:
    learnt = learnt_from(DATA, least)
    for split in ("val", "test"):
        wanted = strata(DATA, split)
        for name, mask in learnt.strata(DATA, split).items():
            np.testing.assert_array_equal(mask, wanted[name])
    train = DATA.examples("train")
    taught = set(contexts(DATA.examples("train", least)))
    found = learnt.examples_of(DATA, "train")
    np.testing.assert_array_equal(found, [text in taught for text in contexts(train)])
    assert learnt.examples.count == len(taught)


def test_a_block_survives_a_file_and_a_damaged_one_is_refused() -> None:
    learnt, file = learnt_from(DATA, 1), io.BytesIO()
    torch.save(learnt.to_block(), file)
    file.seek(0)
    block = torch.load(file, weights_only=True)
    again = Learnt.from_block(block)
    assert again.min_context == 1
    np.testing.assert_array_equal(again.transitions.hashes, learnt.transitions.hashes)
    block["targets"]["hashes"] = block["targets"]["hashes"].flip(0)
    with pytest.raises(DatasetError, match="are damaged: ValueError"):
        Learnt.from_block(block)
    with pytest.raises(DatasetError, match="are damaged: KeyError"):
        Learnt.from_block({"form": module.FORM})


def test_a_bloom_filter_finds_all_its_own_and_few_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    own, others = rng.integers(0, 2**63, (2, 50_000)).astype(np.uint64)
    found = BloomFilter.for_at_most(len(own))
    found.add(own)
    assert found.holds(own).all()
    wrong = found.holds(others).mean()
    assert wrong < 3e-4
    assert found.error_rate == pytest.approx(2e-5, rel=0.3)
    assert found.count == pytest.approx(len(own), abs=5)
    monkeypatch.setattr(module, "EXACT_UP_TO", 100)
    monkeypatch.setattr(module, "_MADE", type(module._MADE)())
    large = learnt_from(DATA, 1)
    assert isinstance(large.examples, BloomFilter)
    assert isinstance(large.targets, ExactHashes), "there are 60 concepts"
    again = Learnt.from_block(large.to_block())
    assert again.error_rate == large.error_rate > 0
    for name, mask in again.strata(DATA, "val").items():
        np.testing.assert_array_equal(mask, strata(DATA, "val")[name])


def test_a_folder_and_a_sample_give_what_the_file_gives(tmp_path: Path) -> None:
    DATA.save(tmp_path / "d.npz")
    shard(tmp_path / "d.npz", tmp_path / "d", lambda n: None)
    mapped = load_dataset(tmp_path / "d")
    file, folder = learnt_from(DATA, 1), learnt_from(mapped, 1)
    np.testing.assert_array_equal(file.examples.hashes, folder.examples.hashes)
    sample = evaluation_part(mapped, EvalLimits(sequences=40, train=60, pool=50))
    for name, mask in folder.strata(sample, "val").items():
        np.testing.assert_array_equal(mask, strata(sample, "val")[name])
