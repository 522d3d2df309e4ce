import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.build import build_model
from ocp_mamba.model.quantize import PackedLinear, quantize, weight_bytes

CONFIG = ModelConfig(d_model=64, n_layers=2, headdim=16, d_tmd=16)


@settings(max_examples=25, deadline=None)
@given(
    d_in=st.integers(1, 40),
    d_out=st.integers(1, 40),
    bias=st.booleans(),
    scale=st.floats(1e-3, 1e3),
    seed=st.integers(0, 1000),
)
def test_a_packed_layer_is_as_near_as_its_rounding_allows(d_in, d_out, bias, scale, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(d_in, d_out, bias=bias)
    linear.weight.data *= scale
    x = torch.randn(3, 2, d_in)
    exact = linear(x)
    sizes = linear.weight.abs().detach()
    # bf16 keeps 8 bits: half a step is 2^-9 of a number. int8: half a step of the row's scale.
    error = {"bf16": sizes * 2**-8, "int8": sizes.amax(1, keepdim=True).expand_as(sizes) / 127 / 2}
    for weights, each in error.items():
        packed = PackedLinear(linear, weights)
        bound = F.linear(x.abs(), each) * 1.01 + 1e-5 * scale + 1e-5
        assert ((packed(x) - exact).abs() <= bound).all()


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(4, 2, bias=False)
    linear.weight.data[0] = 0
    assert (PackedLinear(linear, "int8")(torch.ones(1, 4))[0, 0] == 0).all()


@pytest.mark.parametrize("weights", ["float32", "bf16", "int8"])
def test_what_a_packed_model_remembers_is_in_bf16(weights):
    model = build_model(ModelConfig(d_model=32, n_layers=2, headdim=16, n_memory=9)).eval()
    assert model.memory_head is not None
    memory = F.normalize(torch.randn(9, 768), dim=-1)
    model.memory_head.set_memory(memory)
    packed = quantize(model, weights)
    kept = memory if weights == "float32" else memory.bfloat16()
    assert torch.equal(packed.memory_head.memory, kept)
    assert torch.equal(model.memory_head.memory, memory)
    x = torch.randn(2, 5, 768)
    with torch.no_grad():
        cosine = F.cosine_similarity(packed.predict_all(x), model.predict_all(x), dim=-1)
    assert cosine.min() > 0.999


@pytest.mark.parametrize(("weights", "cosine"), [("bf16", 0.9999), ("int8", 0.999)])
def test_a_packed_model_predicts_nearly_the_same_and_is_smaller(weights, cosine):
    torch.manual_seed(0)
    model = build_model(CONFIG).eval()
    x, tmd = torch.randn(4, 9, 768), torch.randn(4, 16)
    packed = quantize(model, weights)
    with torch.no_grad():
        exact, rounded = model.predict_all(x, tmd), packed.predict_all(x, tmd)
    assert not torch.equal(exact, rounded)
    assert F.cosine_similarity(exact, rounded, dim=-1).min() > cosine
    names = [n for n, m in packed.named_modules() if isinstance(m, nn.Linear)]
    assert not names, "every matrix is packed"
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    saved = {"bf16": 2, "int8": 3}[weights] * matrices
    rows = sum(len(m.weight) for m in model.modules() if isinstance(m, nn.Linear))
    scales = 4 * rows if weights == "int8" else 0
    assert weight_bytes(packed) == weight_bytes(model) - saved + scales
    assert isinstance(model.output, nn.Linear), "the model itself stays as it was"


def test_float32_is_a_plain_copy():
    model = build_model(CONFIG).eval()
    copied = quantize(model, "float32")
    x, tmd = torch.randn(1, 3, 768), torch.randn(1, 16)
    assert torch.equal(copied(x, tmd), model(x, tmd))
    assert copied.output.weight is not model.output.weight


@pytest.mark.parametrize("weights", ["bf16", "int8"])
def test_a_packed_model_steps_as_it_passes(weights):
    torch.manual_seed(0)
    packed = quantize(build_model(CONFIG), weights)
    x, tmd = torch.randn(2, 6, 768), torch.randn(2, 16)
    cache = packed.allocate_inference_cache(2)
    packed.prefill(x[:, :3], tmd, cache)
    for t in range(3, 6):
        stepped = packed.step(x[:, t], tmd, cache)
    with torch.no_grad():
        torch.testing.assert_close(stepped, packed(x, tmd), rtol=0, atol=1e-5)


def test_unknown_weights_are_refused():
    with pytest.raises(ValueError, match="'int4' is unknown; choose one of float32, bf16, int8"):
        quantize(build_model(CONFIG), "int4")
