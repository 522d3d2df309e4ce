from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.baselines.checkpoint import load_predictor, save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import CheckpointError, ConfigError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_model, save_checkpoint
from ocp_mamba.model.context_lookup import ContextLookup
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.quantize import quantize

TINY = ModelConfig(d_model=32, n_layers=2, headdim=16, members=2, n_memory=5, n_lookup=9)
STEPS = torch.tensor([[-1, 0, 1], [0, 1, 2], [0, 1, 3], [2, 3, 0]])


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def filled(model: NextVectorModel) -> NextVectorModel:
    assert model.lookup is not None
    model.lookup.set_steps(rows(4, 768), STEPS)
    return model.eval()


def looking_up(config: ModelConfig = TINY) -> OCPMambaLVM:
    torch.manual_seed(0)
    model = build_model(config)
    if model.memory_head is not None:
        model.memory_head.set_memory(rows(5, 768, seed=7))
    filled(model)
    return model


@given(
    seed=st.integers(0, 99),
    temperature=st.floats(0.02, 1),
    weight=st.floats(0.1, 5),
    share=st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_a_prediction_moves_to_the_mean_of_what_followed_similar_contexts(
    seed, temperature, weight, share
):
    lookup = ContextLookup(
        ModelConfig(
            n_lookup=4,
            lookup_temperature=temperature,
            lookup_weight=weight,
            lookup_previous=share,
        )
    )
    vectors = rows(4, 768)
    lookup.set_steps(vectors, STEPS)
    prediction, last, previous = (rows(2, 768, seed=seed + i) for i in range(3))
    previous[1] = 0  # a context of one concept
    found = lookup(prediction, 3 * last, previous)
    for i in range(2):
        similarities = []
        for before, at, _ in STEPS.tolist():
            to_previous = 0.0 if before < 0 else float(previous[i] @ vectors[before])
            similarities.append(share * to_previous + (1 - share) * float(last[i] @ vectors[at]))
        probs = (torch.tensor(similarities) / temperature).softmax(0)
        mean = probs @ vectors[STEPS[:, 2]]
        expected = F.normalize(prediction[i] + weight * mean, dim=0)
        torch.testing.assert_close(found[i], expected, atol=1e-5, rtol=1e-4)


def test_a_lookup_without_steps_changes_nothing():
    h = rows(2, 3, 768)
    assert torch.equal(ContextLookup(ModelConfig(n_lookup=4))(h, h, h), h)
    torch.manual_seed(0)
    without = build_model(replace(TINY, n_lookup=0)).eval()
    torch.manual_seed(0)
    empty = build_model(TINY).eval()
    assert torch.equal(without.predict_all(h), empty.predict_all(h))


@pytest.mark.parametrize("config", [TINY, replace(TINY, members=1, n_memory=0)])
def test_steps_and_a_prefill_give_what_one_pass_gives(config):
    model, chain = looking_up(config), rows(2, 7, 768, seed=1)
    whole = model.predict_all(chain)
    cache = model.allocate_inference_cache(2)
    torch.testing.assert_close(model.prefill(chain[:, :3], None, cache), whole[:, 2])
    for t in range(3, 6):
        torch.testing.assert_close(model.step(chain[:, t], None, cache), whole[:, t])
    second = cache.select(torch.tensor([1]))
    torch.testing.assert_close(model.step(chain[1:, 6], None, second), whole[1:, 6])
    cache.reset()
    torch.testing.assert_close(model.step(chain[:, 0], None, cache), whole[:, 0])


def test_a_prefill_of_other_lengths_goes_on_from_each_last_vector():
    model, chain = looking_up(), rows(2, 6, 768, seed=1)
    lengths, cache = torch.tensor([1, 4]), model.allocate_inference_cache(2)
    model.prefill(chain[:, :4], None, cache, lengths)
    found = model.step(torch.stack([chain[0, 1], chain[1, 4]]), None, cache)
    whole = model.predict_all(chain)
    torch.testing.assert_close(found, torch.stack([whole[0, 1], whole[1, 4]]))


def test_a_prediction_depends_on_the_two_last_vectors_of_a_lookup_alone():
    model, chain = looking_up(replace(TINY, lookup_weight=1e6)), rows(1, 5, 768, seed=1)
    other = chain.clone()
    other[:, :3] = rows(1, 3, 768, seed=2)
    torch.testing.assert_close(
        model.predict_all(chain)[:, -1], model.predict_all(other)[:, -1], atol=1e-4, rtol=0
    )
    other[:, 3] = rows(1, 768, seed=3)
    assert not torch.allclose(model.predict_all(chain)[:, -1], model.predict_all(other)[:, -1])


def test_a_file_has_the_lookup_and_weights_of_bf16_have_it_too(tmp_path):
    model, chain = looking_up(), rows(2, 4, 768, seed=1)
    save_checkpoint(tmp_path / "m.pt", model, dataset_fingerprint="d", encoder={})
    loaded = load_model(tmp_path / "m.pt")
    assert torch.equal(loaded.predict_all(chain), model.predict_all(chain))
    small = quantize(loaded, "bf16")
    assert small.lookup is not None
    assert small.lookup.vectors.dtype == torch.bfloat16
    torch.testing.assert_close(
        small.predict_all(chain), model.predict_all(chain), atol=0.02, rtol=0.0
    )


@pytest.mark.parametrize("name", TRAINED_BASELINES)
def test_a_baseline_of_such_a_model_has_the_same_lookup(tmp_path, name):
    model, chain = filled(TRAINED_BASELINES[name](TINY, 40_000)), rows(1, 3, 768)
    predicted = model.predict_all(chain)
    save_baseline(tmp_path / "b.pt", model, dataset_fingerprint="d", encoder={})
    assert torch.equal(load_predictor(tmp_path / "b.pt").model.predict_all(chain), predicted)
    model.lookup = None
    assert not torch.allclose(model.predict_all(chain), predicted)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (torch.tensor([[0, 1, 5]]), "holds 0 to 5, numbers of the 5 rows"),
        (torch.tensor([[-1, 1, 2]]), "holds -1 to 2"),
        (torch.tensor([[0.0, 1, 2]]), "int64 wanted"),
        (torch.zeros(10, 3, dtype=torch.long), "lookup.steps is int64 \\(10, 3\\)"),
        (torch.zeros(2, 2, dtype=torch.long), "lookup.steps is int64 \\(2, 2\\)"),
    ],
)
def test_steps_of_a_file_that_do_not_fit_are_refused(tmp_path, steps, message):
    model = looking_up()
    assert model.lookup is not None
    model.lookup.steps = steps
    save_checkpoint(tmp_path / "m.pt", model, dataset_fingerprint="d", encoder={})
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path / "m.pt")


def test_what_does_not_fit_is_refused():
    lookup = ContextLookup(ModelConfig(n_lookup=2))
    with pytest.raises(ValueError, match="rows of 768"):
        lookup.set_steps(rows(4, 8), STEPS[:2])
    with pytest.raises(ValueError, match="up to 2 steps"):
        lookup.set_steps(rows(4, 768), STEPS)
    with pytest.raises(ConfigError, match="n_lookup and relations"):
        OCPMambaLVM(replace(TINY, members=1, n_memory=0))
    for bad in ({"lookup_previous": 1.5}, {"lookup_temperature": 0.0}, {"n_lookup": -1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            replace(TINY, **bad)
