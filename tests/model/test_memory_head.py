from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.baselines.checkpoint import load_predictor, save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels.products import inner_products
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_model, save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.memory_head import MemoryHead, softmax_mean

TINY = ModelConfig(d_model=32, n_layers=2, headdim=16, members=2, n_memory=9)


def normalize(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def remembering(rows: int = 5) -> OCPMambaLVM:
    torch.manual_seed(0)
    model = build_model(TINY).eval()
    assert model.memory_head is not None
    model.memory_head.set_memory(normalize(rows, 768))
    return model


@given(seed=st.integers(0, 99), n=st.integers(1, 9), weight=st.floats(0.1, 5))
@settings(max_examples=25, deadline=None)
def test_a_prediction_moves_to_the_weighted_mean_of_what_is_remembered(seed, n, weight):
    config = ModelConfig(n_memory=9, memory_weight=weight)
    memory_head, memory, h = (
        MemoryHead(config),
        normalize(n, 768, seed=seed),
        normalize(2, 3, 768, seed=seed + 1),
    )
    memory_head.set_memory(memory)
    found, log_sum = memory_head(h, 0.2)
    assert log_sum is not None
    for i in range(2):
        for j in range(3):
            scores = torch.tensor([float(h[i, j] @ row) / 0.2 for row in memory]).exp()
            mean = sum(s / scores.sum() * row for s, row in zip(scores, memory, strict=True))
            expected = h[i, j] + weight * mean
            torch.testing.assert_close(found[i, j], expected, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(log_sum[i, j], scores.sum().log(), atol=1e-5, rtol=1e-4)


@given(
    shape=st.sampled_from([(1, 4), (7, 4), (2, 3, 5)]),
    n=st.integers(1, 9),
    seed=st.integers(0, 99),
    temperature=st.floats(0.02, 1),
)
@settings(max_examples=30, deadline=None)
def test_softmax_mean_and_its_gradients_are_those_of_plain_torch(shape, n, seed, temperature):
    queries, rows = (
        normalize(*shape, seed=seed).double(),
        normalize(n, shape[-1], seed=seed + 1).double(),
    )
    weights = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed)).double()

    def plain(q):
        logits = q @ rows.T / temperature
        return logits.softmax(-1) @ rows, logits.logsumexp(-1)

    for used in ((1, 0), (0, 1), (1, 1)):  # the mean, the log sum, both
        found = []
        for function in (lambda q: softmax_mean(q, rows, temperature), plain):
            q = queries.clone().requires_grad_()
            mean, log_sum = function(q)
            total = used[0] * (mean * weights[0]) + used[1] * log_sum[..., None] * weights[1]
            found.append((mean, log_sum, *torch.autograd.grad(total.sum(), q)))
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_an_unused_half_of_softmax_mean_has_no_gradient_to_compute():
    queries = normalize(3, 8).requires_grad_()
    mean, log_sum = softmax_mean(queries, normalize(5, 8, seed=1), 0.1)
    (along,) = torch.autograd.grad(log_sum.sum(), queries)
    torch.testing.assert_close(along, mean / 0.1)


def test_under_autocast_products_are_bf16_and_what_comes_out_is_not():
    queries, rows = normalize(40, 64).requires_grad_(), normalize(30, 64, seed=1)
    exact = softmax_mean(queries, rows, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = softmax_mean(queries, rows, 0.1)
    assert [x.dtype for x in logits] == [torch.float32] * 2
    for a, b, most in zip(logits, exact, (0.005, 0.05), strict=True):
        assert 0 < (a - b).abs().max() < most


def test_nothing_remembered_nothing_moved():
    h = normalize(3, 768)
    assert MemoryHead(ModelConfig(n_memory=4))(h, 0.1) == (h, None)
    torch.testing.assert_close(MemoryHead(ModelConfig(n_memory=4)).mixture(h[None]), h)


def test_a_model_answers_with_the_mean_of_its_members_probabilities_and_queries():
    model, x = remembering(), normalize(2, 4, 768, seed=3)
    queries = model.predict_members(x)
    assert model.memory_head is not None
    memory = model.memory_head.memory
    probs = torch.stack([(q @ memory.T / TINY.memory_temperature).softmax(-1) for q in queries])
    expected = queries.mean(0) + TINY.memory_weight * probs.mean(0) @ memory
    torch.testing.assert_close(model.predict_all(x), F.normalize(expected, dim=-1))
    assert (model.predict_all(x) - F.normalize(queries.mean(0), dim=-1)).abs().max() > 1e-3


@pytest.mark.parametrize("shape", [(3, 1, 768), (2, 5, 768), (1, 768)])
def test_compiled_inner_products_are_the_products(shape):
    memory, rows = normalize(7, 768), normalize(*shape, seed=1)
    compiled = torch.compile(inner_products, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(rows, memory), rows @ memory.T, atol=1e-6, rtol=1e-5)


def test_prefill_and_steps_recall_as_the_full_pass_does():
    model, x = remembering(), normalize(2, 6, 768, seed=4)
    cache = model.allocate_inference_cache(2)
    found = [model.prefill(x[:, :3], None, cache)]
    found += [model.step(x[:, t], None, cache) for t in range(3, 6)]
    torch.testing.assert_close(
        torch.stack(found, 1), model.predict_all(x)[:, 2:], atol=1e-5, rtol=0
    )


def test_files_keep_what_is_remembered(tmp_path):
    model, x = remembering(), normalize(1, 4, 768, seed=5)
    about = {"dataset_fingerprint": "f", "encoder": {"name": "e"}}
    save_checkpoint(tmp_path / "model.pt", model, **about)
    assert torch.equal(load_model(tmp_path / "model.pt").predict_all(x), model.predict_all(x))
    for name, make in TRAINED_BASELINES.items():
        baseline = make(TINY, 200_000).eval()
        assert baseline.memory_head is not None
        baseline.memory_head.set_memory(normalize(7, 768))
        save_baseline(tmp_path / f"{name}.pt", baseline, **about)
        loaded = load_predictor(tmp_path / f"{name}.pt").model
        assert torch.equal(loaded.predict_all(x), baseline.predict_all(x))
        without = make(ModelConfig(d_model=32, n_layers=2, headdim=16), 200_000)
        assert without.memory_head is None


@pytest.mark.parametrize("rows", [(10, 768), (3, 5), (768,)])
def test_what_cannot_be_remembered_is_refused(rows):
    with pytest.raises(ValueError, match=r"up to 9 rows of 768 can be stored, got \("):
        MemoryHead(TINY).set_memory(torch.zeros(rows))
