import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_maker import make_dataset

from ocp_mamba.baselines.simple import (
    ContextMean,
    GlobalMean,
    NearestNeighbour,
    Persistence,
    Ridge,
    cheap_baselines,
)


@pytest.fixture(scope="module")
def dataset():
    return make_dataset(n_chains=200, n_concepts=60, seed=3)


@pytest.fixture(scope="module")
def x(dataset):
    return torch.from_numpy(dataset.bank[:24].reshape(3, 8, 768))


def test_all_give_unit_rows_and_are_causal(dataset, x):
    changed = x.clone()
    changed[:, 5:] = x[:, 5:].flip(0)
    for name, predictor in cheap_baselines(dataset).items():
        y = predictor.predict_all(x)
        assert y.shape == x.shape, name
        torch.testing.assert_close(y.norm(dim=-1), torch.ones(3, 8), msg=name)
        torch.testing.assert_close(y[:, :5], predictor.predict_all(changed)[:, :5], msg=name)


def test_persistence_and_context_mean_by_hand(x):
    assert torch.equal(Persistence().predict_all(x), x)
    mean = F.normalize(x[0, :4].mean(0), dim=0)
    torch.testing.assert_close(ContextMean().predict_all(x)[0, 3], mean)


def test_global_mean_counts_each_target_as_often_as_it_occurs(dataset, x):
    targets = dataset.examples("train").target
    mean = sum(dataset.bank[t].astype(np.float64) for t in targets)
    expected = torch.from_numpy(mean / np.linalg.norm(mean)).float()
    torch.testing.assert_close(GlobalMean(dataset).predict_all(x)[1, 2], expected)


def test_ridge_recovers_a_linear_rule():
    rng = np.random.default_rng(0)
    plan = make_dataset(n_chains=3000, n_concepts=2000, seed=1, min_length=3, max_length=3)
    q, _ = np.linalg.qr(rng.standard_normal((768, 768)))
    bank = plan.bank.copy()
    bank[1000:] = (bank[:1000] @ q).astype(np.float32)
    first = rng.integers(0, 1000, (3000, 2))
    chains = np.column_stack([first, first[:, 1] + 1000]).astype(np.int32)
    fields = {"bank": bank, "chain_values": chains.ravel()}
    ruled = make_dataset(3000, 2000, seed=1, min_length=3, max_length=3, **fields)
    predicted = Ridge(ruled).predict_all(torch.from_numpy(bank[:50])[None])[0]
    assert F.cosine_similarity(predicted, torch.from_numpy(bank[1000:1050])).mean() > 0.95


def test_nearest_neighbour_repeats_the_commonest_successor_in_train(dataset):
    examples = dataset.examples("train")
    for last in np.unique(examples.last)[:10]:
        followers = np.bincount(examples.target[examples.last == last])
        expected = dataset.bank[int(followers.argmax())]
        query = torch.from_numpy(dataset.bank[last])[None, None]
        torch.testing.assert_close(
            NearestNeighbour(dataset).predict_all(query)[0, 0], torch.from_numpy(expected)
        )
