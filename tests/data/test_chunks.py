import numpy as np
import pytest
from data_maker import make_dataset

from ocp_mamba.data import chunks
from ocp_mamba.data.dataset import SPLITS


@pytest.fixture(params=[1, 7, 1000], autouse=True)
def chains_at_once(request, monkeypatch):
    monkeypatch.setattr(chunks, "CHAINS", request.param)


@pytest.fixture(scope="module")
def data():
    first = np.random.default_rng(0).integers(1, 3, 200).astype(np.uint8)
    return make_dataset(200, 90, 3, chain_first=first)


def test_the_pieces_are_the_whole(data):
    found = list(chunks.chain_chunks(data))
    np.testing.assert_array_equal(np.concatenate([p.chains for p in found]), np.arange(200))
    np.testing.assert_array_equal(np.concatenate([p.values for p in found]), data.chain_values)
    for chunk in found:
        for row, chain in enumerate(chunk.chains):
            begin = chunk.starts[row]
            mine = chunk.values[begin : begin + chunk.lengths[row]]
            np.testing.assert_array_equal(mine, data.chain(int(chain)))


@pytest.mark.parametrize("split", SPLITS)
def test_the_examples_of_all_pieces_are_those_of_the_split(data, split):
    examples = data.examples(split)
    last, target = zip(*(p.examples(split) for p in chunks.chain_chunks(data)), strict=True)
    np.testing.assert_array_equal(np.concatenate(last), examples.last)
    np.testing.assert_array_equal(np.concatenate(target), examples.target)
    assert chunks.count_examples(data)[split] == data.n_examples(split)


def test_train_targets_are_found_without_all_examples_in_memory(data):
    found = chunks.train_targets(data)
    np.testing.assert_array_equal(found, np.unique(data.examples("train").target))
    assert found.dtype == np.int64


@pytest.mark.parametrize("min_context", [None, 1])
def test_train_steps_are_the_different_last_two_concepts_and_targets(data, min_context):
    wanted = set()
    examples = data.examples("train", min_context=min_context)
    for chain, position in zip(examples.chain, examples.position, strict=True):
        concepts = data.chain(int(chain))
        before = concepts[position - 2] if position > 1 else -1
        wanted.add((int(before), int(concepts[position - 1]), int(concepts[position])))
    found = chunks.train_steps(data, 10_000, min_context)
    assert [tuple(row) for row in found.tolist()] == sorted(wanted)


def test_of_too_many_steps_the_same_are_drawn_whatever_the_pieces(data, monkeypatch):
    everything, drawn = chunks.train_steps(data, 10_000), chunks.train_steps(data, 20)
    assert len(drawn) == 20
    assert {tuple(r) for r in drawn.tolist()} < {tuple(r) for r in everything.tolist()}
    monkeypatch.setattr(chunks, "CHAINS", 13)
    np.testing.assert_array_equal(chunks.train_steps(data, 20), drawn)
