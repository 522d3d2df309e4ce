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
