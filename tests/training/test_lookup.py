"""A training fills the model's context lookup, and learns the weights of a model without one."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from data_maker import make_dataset
from trainings import seeded

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.model.checkpoint import load_model
from ocp_mamba.model.context_lookup import ContextLookup
from ocp_mamba.training.lookup import fill_lookup
from ocp_mamba.training.trainer import fit

ONE_LAYER = ModelConfig(d_model=32, n_layers=1, headdim=16, n_lookup=5_000)


def test_a_lookup_holds_what_followed_each_context_of_train():
    data = make_dataset(seed=5)
    lookup = ContextLookup(replace(ONE_LAYER, lookup_temperature=1e-3))
    fill_lookup(data, lookup, 1)
    bank = torch.from_numpy(data.bank).float()
    followers: dict[tuple[int, int], set[int]] = {}
    for i in data.chains_in("train"):
        chain = data.chain(int(i)).tolist()
        for before, at, after in zip([-1, *chain], chain, chain[1:], strict=False):
            followers.setdefault((before, at), set()).add(after)
    for (before, at), after in followers.items():
        previous = torch.zeros(768) if before < 0 else bank[before]
        found = lookup(torch.zeros(768), bank[at], previous)
        wanted = F.normalize(bank[sorted(after)].mean(dim=0), dim=0)
        if before >= 0:  # else each step with this last concept is as similar
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("most", [5_000, 7])
def test_a_training_fills_it_and_learns_the_same_weights(data, validate, tmp_path, most):
    config = TrainConfig(max_epochs=1, batch_size=16)
    plain = seeded(replace(ONE_LAYER, n_lookup=0))
    fit(plain, data, config, validate=validate, progress=False)
    model = seeded(replace(ONE_LAYER, n_lookup=most))
    fit(model, data, config, validate=validate, output=tmp_path / "m.pt", progress=False)
    for name, weight in plain.named_parameters():
        assert torch.equal(weight, model.get_parameter(name)), name
    loaded = load_model(tmp_path / "m.pt")
    assert len(loaded.lookup.steps) == len(model.lookup.steps)
    assert most == 5_000 or len(loaded.lookup.steps) == most
    chains = F.normalize(torch.randn(2, 4, 768), dim=-1)
    assert torch.equal(loaded.predict_all(chains), model.eval().predict_all(chains))
    assert not torch.allclose(loaded.predict_all(chains), plain.eval().predict_all(chains))


def test_a_lookup_of_no_steps_at_all_is_left_empty():
    data = make_dataset(seed=5)
    lookup = ContextLookup(ONE_LAYER)
    fill_lookup(data, lookup, 99)
    assert len(lookup.steps) == 0
