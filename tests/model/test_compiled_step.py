import pytest
import torch
import torch.nn.functional as F

from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels import cpu
from ocp_mamba.model.build import build_model
from ocp_mamba.model.compiled_step import fast_step
from ocp_mamba.model.quantize import quantize

PLAIN = ModelConfig(d_model=32, n_layers=2, headdim=16)
TOLD = ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=16, relations=("is", "has"))
REMEMBERING = ModelConfig(d_model=32, n_layers=2, headdim=16, members=2, n_memory=70, n_lookup=9)
CONFIGS = pytest.mark.parametrize(
    "config", [PLAIN, TOLD, REMEMBERING], ids=["plain", "told", "remembering"]
)


def made(config, seed=0):
    torch.manual_seed(seed)
    model = build_model(config).eval()
    if hasattr(model, "relation_adapter"):
        torch.nn.init.normal_(model.relation_adapter.adapter.weight)
    if config is REMEMBERING:
        assert model.memory_head is not None
        model.memory_head.set_memory(F.normalize(torch.randn(config.n_memory, 768), dim=-1))
        assert model.lookup is not None
        steps = torch.randint(-1, 4, (9, 3)).clamp_min(torch.tensor([-1, 0, 0]))
        model.lookup.set_steps(F.normalize(torch.randn(4, 768), dim=-1), steps)
    return model


def same_as_the_plain_step(model, config):
    x = F.normalize(torch.randn(1, 9, config.d_vector), dim=-1)
    tmd = torch.randn(1, 16) if config.d_tmd else None
    cache, plain = (model.allocate_inference_cache(1) for _ in range(2))
    for c in (cache, plain):
        model.prefill(x[:, :3], tmd, c)
    fast = fast_step(model, cache)
    for a, b in zip(cache.layers, plain.layers, strict=True):
        assert torch.equal(a.ssm_state, b.ssm_state), "what the cache held was lost"
        assert torch.equal(a.conv_state, b.conv_state)
    for t in range(3, 9):
        known = torch.tensor([[2.0, 0.7]]) if config.relations and t > 5 else None
        expected = model.step(x[:, t], tmd, plain, relations=known)
        actual = fast(x[:, t], tmd, known) if known is not None else fast(x[:, t], tmd)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    for a, b in zip(cache.layers, plain.layers, strict=True):
        torch.testing.assert_close(a.ssm_state, b.ssm_state, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.conv_state, b.conv_state, rtol=1e-4, atol=1e-5)


@pytest.mark.slow  # the compiler takes its time
@pytest.mark.filterwarnings("error:the step runs without compilation")
@pytest.mark.parametrize("weights", ["float32", "bf16", "int8"])
@CONFIGS
def test_the_compiled_step_is_the_step(config, weights, monkeypatch):
    called, call = [], cpu.call
    monkeypatch.setattr(cpu, "call", lambda name, *given: called.append(name) or call(name, *given))
    same_as_the_plain_step(quantize(made(config), weights), config)
    assert set(called) == ({"read_memory"} if config is REMEMBERING else set())


@pytest.mark.slow
@pytest.mark.filterwarnings("error:the step runs without compilation")
def test_two_models_compiled_in_one_process_keep_apart():
    x, results = torch.randn(1, 768), []
    for seed in (1, 2):
        model = made(PLAIN, seed)
        results.append((model, fast_step(model, model.allocate_inference_cache(1))))
    for model, fast in results:
        expected = model.step(x, None, model.allocate_inference_cache(1))
        torch.testing.assert_close(fast(x), expected, rtol=0, atol=1e-5)


@CONFIGS
def test_where_the_compiler_fails_the_plain_step_runs_and_a_warning_says_so(config, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="without compilation: RuntimeError: no C"):
        same_as_the_plain_step(made(config), config)


def test_wrong_arguments_are_named(monkeypatch):
    model = made(PLAIN)
    with pytest.raises(ValueError, match="takes one sequence, the cache has 2"):
        fast_step(model, model.allocate_inference_cache(2))
    monkeypatch.delattr(torch, "compile")
    with pytest.warns(UserWarning, match="AttributeError"):
        fast = fast_step(model, model.allocate_inference_cache(1))
    with pytest.raises(ValueError, match=r"must have shape \(B, L, 768\), got \(1, 1, 5\)"):
        fast(torch.ones(1, 5))
    with pytest.raises(ValueError, match="the cache has 1 sequences, got 2"):
        fast(torch.ones(2, 768))
    with pytest.raises(ValueError, match="no tmd"):
        fast(torch.ones(1, 768), torch.ones(1, 16))
