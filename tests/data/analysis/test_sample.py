"""A sample to evaluate on: what it says of its examples must be true of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from data_maker import fields_of, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.baselines.simple import Persistence
from ocp_mamba.data import chunks
from ocp_mamba.data.analysis.leakage import check, strata
from ocp_mamba.data.analysis.sample import EvalLimits, SampledDataset, evaluation_part, sample_of
from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards.convert import shard
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.result import paired_difference

SMALL = EvalLimits(sequences=60, train=100, pool=50)


def siblings(n_groups: int, size: int, seed: int, **changed: object) -> Dataset:
    """Groups of chains that differ in their first concept only."""
    rng = np.random.default_rng(seed)
    chains, splits = [], []
    for _ in range(n_groups):
        tail = rng.integers(0, 60, rng.integers(2, 8))
        chains += [np.append(first, tail) for first in rng.integers(0, 60, size)]
        splits += [rng.integers(0, 3)] * size
    lengths = [len(c) for c in chains]
    return make_dataset(
        len(chains),
        60,
        seed,
        chain_values=np.concatenate(chains).astype(np.int32),
        chain_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        split=np.array(splits, np.uint8),
        **changed,
    )


def prefixes(data: Dataset, split: str, min_context: int | None = None) -> list[bytes]:
    """Context and target of each example."""
    examples = data.examples(split, min_context)
    return [
        data.chain(int(c))[: k + 1].tobytes()
        for c, k in zip(examples.chain, examples.position, strict=True)
    ]


def places_in_whole(part: SampledDataset, whole: Dataset, split: str) -> np.ndarray:
    """Row numbers among the whole's examples of each of the sample's."""
    ours, theirs = part.examples(split), whole.examples(split)
    row = {pair: i for i, pair in enumerate(zip(theirs.chain, theirs.position, strict=True))}
    return np.array(
        [row[part.chains[c], k] for c, k in zip(ours.chain, ours.position, strict=True)], int
    )


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    n_concepts=st.sampled_from([5, 12, 60]),
    first=st.sampled_from([1, 2, None]),
    longest=st.sampled_from([3, 9]),
    min_context=st.sampled_from([None, 1, 2, 4]),
    at_once=st.sampled_from([3, 50, 10_000]),
    limits=st.builds(
        EvalLimits,
        sequences=st.integers(0, 150),
        train=st.integers(0, 300),
        pool=st.integers(0, 60),
        seed=st.integers(0, 5),
    ),
)
def test_the_sample_knows_of_its_examples_what_the_whole_does(
    seed, n_concepts, first, longest, min_context, at_once, limits
):
    rng = np.random.default_rng(seed)
    firsts = rng.integers(1, 3, 120) if first is None else np.full(120, first)
    whole = make_dataset(
        120, n_concepts, seed, chain_first=firsts.astype(np.uint8), max_length=longest
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "CHAINS", at_once)
        part = evaluation_part(whole, limits)
    if not isinstance(part, SampledDataset):
        assert part is whole
        return
    report = check(part, min_context=min_context)
    texts = dict(zip(whole.texts, whole.bank, strict=True))
    for text, row in zip(part.texts, part.bank, strict=True):
        np.testing.assert_array_equal(row, texts[text])
    for split in SPLITS:
        rows = places_in_whole(part, whole, split)
        theirs = whole.examples(split)
        for name, mask in strata(whole, split).items():
            np.testing.assert_array_equal(strata(part, split)[name], mask[rows])
        np.testing.assert_array_equal(
            part.texts[part.examples(split).target], whole.texts[theirs.target[rows]]
        )
        assert part.sample.sequences[split] == (len(rows), len(theirs.target))
        limit = limits.of(split)
        assert len(rows) <= max(limit, 8) if limit else len(rows) == len(theirs.target)
    for (one, other), (count, share) in report.pairs.items():
        elsewhere = set(prefixes(whole, one, min_context if one == "train" else None))
        mine = np.array(prefixes(whole, other), object)[places_in_whole(part, whole, other)]
        assert count == sum(p in elsewhere for p in mine)
        assert share == pytest.approx(count / len(mine))
    assert report.bank["concepts"] == n_concepts
    assert report.bank["unused_concepts"] == n_concepts - len(np.unique(whole.chain_values))
    used = len(np.unique(part.chain_values))
    wanted = n_concepts if limits.pool == 0 else min(n_concepts, max(limits.pool, used))
    assert part.sample.concepts == (part.n_concepts, n_concepts) == (wanted, n_concepts)


@pytest.mark.parametrize("size", [2, 5])
def test_siblings_are_drawn_together_and_each_group_as_likely(size):
    whole = siblings(60, size, seed=1)
    tails = [whole.chain(i)[1:].tobytes() for i in range(whole.n_chains)]
    drawn = np.zeros(whole.n_chains)
    for seed in range(200):
        part = evaluation_part(whole, EvalLimits(80, 80, 0, seed))
        assert isinstance(part, SampledDataset)
        chosen = np.isin(np.arange(whole.n_chains), part.chains)
        drawn += chosen
        for split in range(3):
            mine = np.flatnonzero(whole.split == split)
            inside = {tails[i] for i in mine[chosen[mine]]}
            assert inside.isdisjoint({tails[i] for i in mine[~chosen[mine]]})
    for split in range(3):  # 200 draws of a share of about a third to two thirds: sigma is 0.035
        share = drawn[whole.split == split] / 200
        assert share.std() < 0.08
        assert 0.1 < share.mean() < 0.9


def test_of_a_group_larger_than_the_limit_as_many_chains_as_fit():
    tail = np.arange(1, 6)
    chains = np.stack([np.append(10 + i % 40, tail) for i in range(90)])
    whole = make_dataset(
        90,
        60,
        chain_values=chains.ravel().astype(np.int32),
        chain_offsets=np.arange(91, dtype=np.int64) * 6,
    )
    part = evaluation_part(whole, EvalLimits(10, 10, 0))
    assert [part.n_examples(s) for s in SPLITS] == [8, 8, 8]  # 4 sequences a chain
    tiny = evaluation_part(whole, EvalLimits(1, 1, 0))
    assert [len(tiny.chains_in(s)) for s in SPLITS] == [1, 1, 1]


def test_what_exceeds_no_limit_is_evaluated_whole():
    whole = make_dataset()
    for limits in (EvalLimits(), EvalLimits(0, 0, 0), EvalLimits(300, 300, 30)):
        assert evaluation_part(whole, limits) is whole
    assert sample_of(whole) is None
    part = evaluation_part(whole, EvalLimits(300, 60, 30))
    assert isinstance(part, SampledDataset)
    assert part.sample.sequences["val"] == (whole.n_examples("val"),) * 2
    assert part.sample.concepts == (30, 30)
    np.testing.assert_array_equal(part.bank, whole.bank)


def test_a_folder_gives_the_sample_of_its_file(tmp_path):
    whole = make_dataset(400, 90, 3, relations=True)
    whole.save(tmp_path / "data.npz")
    shard(tmp_path / "data.npz", tmp_path / "data")
    part, mapped = (evaluation_part(d, SMALL) for d in (whole, load_dataset(tmp_path / "data")))
    assert isinstance(part, SampledDataset)
    assert isinstance(mapped, SampledDataset)
    assert mapped.sample == part.sample
    assert mapped.fingerprint == part.fingerprint != whole.fingerprint == part.sample.of
    for name, value in fields_of(part).items():
        np.testing.assert_array_equal(getattr(mapped, name), value)
    assert part.chain_relation is not None
    assert part.relations == whole.relations


def test_another_seed_limit_or_dataset_is_another_sample():
    whole, other = make_dataset(400, 90, 3), make_dataset(400, 90, 4)
    found = {
        evaluation_part(d, limits).fingerprint
        for d, limits in [
            (whole, SMALL),
            (whole, SMALL),
            (whole, EvalLimits(60, 100, 50, seed=1)),
            (whole, EvalLimits(50, 100, 50)),
            (other, SMALL),
        ]
    }
    assert len(found) == 4


def test_a_leak_is_found_where_its_other_half_was_not_drawn():
    whole = make_dataset(400, 90, 3)
    train, val = whole.chains_in("train"), whole.chains_in("val")
    fits = train[whole.lengths[train] == whole.lengths[val[0]]][0]
    values = whole.chain_values.copy()
    at = whole.chain_offsets[fits]
    values[at : at + whole.lengths[fits]] = whole.chain(int(val[0]))
    leaky = Dataset(**fields_of(whole) | {"chain_values": values})
    part = evaluation_part(leaky, EvalLimits(0, 20, 0))
    assert isinstance(part, SampledDataset)
    assert fits not in part.chains
    report = check(part)
    assert report.leaks
    assert report.pairs["train", "val"] == check(leaky).pairs["train", "val"]
    assert "examples of the sample of val" in report.warnings[0]
    assert report.to_markdown().startswith("Of a sample (seed 0, ")
    clean = check(evaluation_part(whole, EvalLimits(0, 20, 0))).pairs["train", "val"][0]
    assert clean + whole.lengths[val[0]] - 2 == report.pairs["train", "val"][0]


def test_an_evaluation_bears_its_sample_and_is_not_paired_with_another():
    whole = make_dataset(400, 90, 3)
    parts = [evaluation_part(whole, EvalLimits(60, 100, 50, seed)) for seed in (0, 1)]
    evaluated = [evaluate(Persistence(), part, "val", name=f"p{i}") for i, part in enumerate(parts)]
    said = evaluated[0].to_dict()
    assert said["dataset_fingerprint"] == whole.fingerprint
    assert said["sample_fingerprint"] == parts[0].fingerprint
    assert said["sample"]["sequences"]["val"] == (evaluated[0].n_examples, whole.n_examples("val"))
    assert evaluated[0].pool_size == parts[0].n_concepts == said["sample"]["concepts"][0]
    tags = evaluated[0].tags()
    assert tags["sample.val"] == f"{evaluated[0].n_examples} of {whole.n_examples('val')} sequences"
    assert tags["sample.pool"] == f"{parts[0].n_concepts} of 90 concepts"
    with pytest.raises(ValueError, match="differ in sample_fingerprint"):
        paired_difference(evaluated[0], evaluated[1], "next_vec_cosine")
    plain = evaluate(Persistence(), whole, "val", name="whole")
    assert plain.to_dict()["sample_fingerprint"] == "whole"
    assert not any(name.startswith("sample.") for name in plain.tags())
    with pytest.raises(ValueError, match="differ in sample_fingerprint"):
        paired_difference(plain, evaluated[0], "next_vec_cosine")
