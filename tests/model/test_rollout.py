"""One vector at a time gives what all at once does."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.build import build_model
from ocp_mamba.model.rollout import rollout

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def made(config, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return build_model(config).to(dtype).eval()


def vectors(*shape, seed=0, dtype=torch.float64):
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(drawn, dim=-1)


configs = st.builds(
    lambda heads, expand, n_layers, members, **rest: ModelConfig(
        d_model=8 * heads,
        expand=expand,
        headdim=8,
        n_layers=n_layers,
        members=min(members, n_layers),
        **rest,
    ),
    heads=st.integers(1, 4),
    expand=st.integers(1, 2),
    n_layers=st.integers(1, 3),
    members=st.integers(1, 3),
    d_state=st.integers(1, 9),
    d_conv=st.integers(1, 5),
    chunk_size=st.integers(1, 9),
    d_vector=st.sampled_from([8, 24]),
    d_tmd=st.sampled_from([0, 16]),
)


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=25, deadline=None)
@given(
    config=configs,
    batch=st.integers(1, 3),
    length=st.integers(1, 24),
    cuts=st.lists(st.integers(0, 24), max_size=3),
    seed=st.integers(0, 1000),
)
def test_full_pass_equals_prefills_and_steps(dtype, config, batch, length, cuts, seed):
    """The context is read in pieces, by prefill or by steps; after each, the pass agrees."""
    model = made(config, dtype, seed)
    x = vectors(batch, length, config.d_vector, seed=seed, dtype=dtype)
    tmd = vectors(batch, 16, seed=seed, dtype=dtype) if config.d_tmd else None
    with torch.no_grad():
        whole = model.predict_all(x, tmd)
    cache = model.allocate_inference_cache(batch)
    edges = sorted({0, length, *(c for c in cuts if c < length)})
    for chunk, (start, end) in enumerate(pairwise(edges)):
        if chunk % 2:
            for t in range(start, end):
                predicted = model.step(x[:, t], tmd, cache)
                torch.testing.assert_close(predicted, whole[:, t], rtol=0, atol=TOLERANCE[dtype])
        else:
            predicted = model.prefill(x[:, start:end], tmd, cache)
            torch.testing.assert_close(predicted, whole[:, end - 1], rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", TOLERANCE)
@settings(max_examples=15, deadline=None)
@given(config=configs, length=st.integers(1, 24), seed=st.integers(0, 1000))
def test_full_pass_equals_all_steps(dtype, config, length, seed):
    model = made(config, dtype, seed)
    x = vectors(2, length, config.d_vector, seed=seed, dtype=dtype)
    tmd = vectors(2, 16, seed=seed, dtype=dtype) if config.d_tmd else None
    cache = model.allocate_inference_cache(2)
    steps = torch.stack([model.step(x[:, t], tmd, cache) for t in range(length)], dim=1)
    with torch.no_grad():
        whole = model.predict_all(x, tmd)
    torch.testing.assert_close(steps, whole, rtol=0, atol=TOLERANCE[dtype])


SMALL = ModelConfig(d_model=32, n_layers=2, headdim=16, chunk_size=8)


def test_the_caches_shapes_are_mamba_ssms():
    c = ModelConfig()
    with torch.device("meta"):
        model = build_model(c)
    cache = model.allocate_inference_cache(3)
    assert cache.batch == 3
    assert len(cache.layers) == 6
    for layer in cache.layers:
        assert layer.conv_state.shape == (3, 1536 + 2 * 16, 4)
        assert layer.ssm_state.shape == (3, 24, 64, 16)


def test_the_memory_does_not_grow_and_holds_the_last_inputs_of_the_convolution():
    model, x = made(SMALL), vectors(1, 300, 768)
    cache = model.allocate_inference_cache(1)
    before = [(s.conv_state.data_ptr(), s.ssm_state.data_ptr()) for s in cache.layers]
    model.prefill(x, None, cache)
    for t in range(20):
        model.step(x[:, t], None, cache)
    assert [(s.conv_state.data_ptr(), s.ssm_state.data_ptr()) for s in cache.layers] == before
    first, layer = cache.layers[0], model.layers[0]
    with torch.no_grad():
        inputs = layer.mixer.in_proj(layer.norm(model.embed(x[:, 16:20], None)))
    c = SMALL
    expected = inputs[..., c.d_inner : 2 * c.d_inner + 2 * c.d_state].mT
    torch.testing.assert_close(first.conv_state, expected)


def test_a_long_prefill_in_float32_loses_nothing_to_rounding():
    model, x = made(SMALL, torch.float32), vectors(1, 4000, 768, dtype=torch.float32)
    cache = model.allocate_inference_cache(1)
    model.prefill(x, None, cache)
    exact_model = made(SMALL)
    exact_model.load_state_dict(model.state_dict())
    exact = exact_model.allocate_inference_cache(1)
    exact_model.prefill(x.double(), None, exact)
    for a, b in zip(cache.layers, exact.layers, strict=True):
        torch.testing.assert_close(a.ssm_state.double(), b.ssm_state, rtol=1e-4, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), extra=st.integers(0, 5))
def test_rows_of_any_length_are_read_together(lengths, extra):
    model = made(SMALL)
    L = max(lengths) + extra
    x = vectors(len(lengths), L, 768)
    for i, n in enumerate(lengths):
        x[i, n:] = 7.0  # rubbish where padded
    cache = model.allocate_inference_cache(len(lengths))
    together = model.prefill(x, None, cache, lengths=torch.tensor(lengths))
    after = model.step(x[:, 0], None, cache)
    for i, n in enumerate(lengths):
        alone = model.allocate_inference_cache(1)
        torch.testing.assert_close(together[i], model.prefill(x[i : i + 1, :n], None, alone)[0])
        torch.testing.assert_close(after[i], model.step(x[i : i + 1, 0], None, alone)[0])


def test_sequences_can_be_forgotten_and_chosen():
    model, x = made(SMALL), vectors(3, 6, 768)
    cache = model.allocate_inference_cache(3)
    model.prefill(x[:, :5], None, cache)
    some = cache.select(torch.tensor([True, False, True]))
    assert some.batch == 2
    chosen = model.step(x[[0, 2], 5], None, some)
    torch.testing.assert_close(chosen, model.step(x[:, 5], None, cache)[[0, 2]])
    cache.reset()
    fresh = model.allocate_inference_cache(3)
    torch.testing.assert_close(
        model.step(x[:, 0], None, cache), model.step(x[:, 0], None, fresh), rtol=0, atol=0
    )


@pytest.mark.parametrize("tmd", [False, True])
def test_rollout_feeds_each_prediction_back(tmd):
    config = ModelConfig(d_model=32, n_layers=2, headdim=16, d_tmd=16 if tmd else 0)
    model, context = made(config), vectors(2, 5, 768)
    codes = vectors(2, 16) if tmd else None
    lengths = torch.tensor([5, 3])
    steps = rollout(model, context, 4, codes, lengths)
    assert steps.shape == (2, 4, 768)
    for i, n in enumerate(lengths):
        seen, code = context[i : i + 1, :n], None if codes is None else codes[i : i + 1]
        for h in range(4):
            with torch.no_grad():
                expected = model(seen, code)
            torch.testing.assert_close(steps[i, h], expected[0], rtol=0, atol=1e-12)
            seen = torch.cat([seen, expected[:, None]], dim=1)


def test_wrong_shapes_are_named():
    model = made(SMALL)
    cache = model.allocate_inference_cache(2)
    with pytest.raises(ValueError, match="the cache has 2 sequences, got 3"):
        model.step(vectors(3, 768), None, cache)
    with pytest.raises(ValueError, match=r"must have shape \(B, L, 768\), got \(2, 1, 5\)"):
        model.step(vectors(2, 5), None, cache)
    with pytest.raises(ValueError, match="lengths must hold 2 numbers from 1 to 3"):
        model.prefill(vectors(2, 3, 768), None, cache, lengths=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="no tmd"):
        model.step(vectors(2, 768), vectors(2, 16), cache)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        rollout(model, vectors(2, 3, 768), 0)
    assert all((s.ssm_state == 0).all() for s in cache.layers)
