"""The CUDA kernels against plain torch on the same device; needs a GPU and mamba_ssm.

Run by ``pytest -m gpu``. None of it has run yet: docs/gpu.md.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from data_maker import make_dataset

from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig
from ocp_mamba.kernels import backend, cuda, ops, step
from ocp_mamba.model.build import build_model
from ocp_mamba.model.compiled_step import fast_step
from ocp_mamba.training.trainer import fit

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
H, P, N, K = 24, 64, 16, 4


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """A missing GPU or package fails these tests: they are asked for by name."""
    assert backend.resolve_device("cuda").type == "cuda"
    monkeypatch.setattr(backend, "_requested", "auto")
    backend.use_backend("cuda", "cuda")


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).cuda()


def close(actual, expected, dtype):
    """Equal relative to the largest number: kernels round elsewhere than torch does."""
    largest = expected.float().abs().max().clamp(min=1e-6)
    error = (actual.float() - expected.float()).abs().max() / largest
    assert error <= TOLERANCE[dtype], float(error)


def by_torch(call, *tensors):
    """The same in plain torch and float32."""
    backend.use_backend("torch", "cuda")
    try:
        return call(*[t.float() if torch.is_tensor(t) else t for t in tensors])
    finally:
        backend.use_backend("cuda", "cuda")


def with_gradients(call, tensors):
    y = call(*tensors)
    wanted = [t for t in tensors if torch.is_tensor(t)]
    weights = torch.linspace(-1, 1, y.numel(), device="cuda").view_as(y)
    return [y, *torch.autograd.grad((y.float() * weights).sum(), wanted)]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("B", "L"), [(1, 1), (3, 14), (2, 64), (2, 300)])
def test_scan_with_gradients(dtype, B, L):
    x, b, c = (
        t.to(dtype) for t in (draw(B, L, H, P), draw(B, L, N, seed=1), draw(B, L, N, seed=2))
    )
    dt, A, D = F.softplus(draw(B, L, H, seed=3) - 3), -draw(H, seed=4).exp(), draw(H, seed=5)
    inputs = [t.requires_grad_() for t in (x, dt, A, b, c, D)]
    expected = by_torch(
        lambda *t: with_gradients(lambda *u: ops.ssd_scan(*u, 64), t),
        *[t.detach().requires_grad_() for t in inputs],
    )
    # by the kernel also where `ops` takes a dense product, because there is one chunk
    found = with_gradients(lambda *t: cuda.ssd_scan(*t, 64), inputs)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("channels", [1568, 1569])
@pytest.mark.parametrize(("B", "L"), [(1, 1), (3, 14), (2, 300)])
def test_convolution_with_gradients(dtype, channels, B, L):
    wide = draw(B, L, channels + 1560).to(dtype)
    x = wide[..., 1536 : 1536 + channels].detach().requires_grad_()
    weight, bias = (
        draw(channels, K, seed=1).requires_grad_(),
        draw(channels, seed=2).requires_grad_(),
    )
    inputs = [x, weight, bias]
    expected = by_torch(
        lambda *t: with_gradients(ops.causal_conv1d, t),
        *[t.detach().requires_grad_() for t in inputs],
    )
    for ours, theirs in zip(with_gradients(ops.causal_conv1d, inputs), expected, strict=True):
        close(ours, theirs, dtype)


@pytest.mark.parametrize("B", [1, 5])
def test_one_position(B):
    x, dt, A, D = (
        draw(B, H, P),
        F.softplus(draw(B, H, seed=1)),
        -draw(H, seed=2).exp(),
        draw(H, seed=3),
    )
    b, c, state = draw(B, N, seed=4), draw(B, N, seed=5), draw(B, H, P, N, seed=6)
    after = state.clone()
    expected = by_torch(step.ssm_step, x, dt, A, b, c, D, after)
    close(step.ssm_step(x, dt, A, b, c, D, state), expected, torch.float32)
    close(state, after, torch.float32)
    channels = H * P + 2 * N
    row, conv, weight, bias = (
        draw(B, channels),
        draw(B, channels, K, seed=1),
        draw(channels, K),
        draw(channels),
    )
    after = conv.clone()
    expected = by_torch(step.conv_step, row, after, weight, bias)
    close(step.conv_step(row, conv, weight, bias), expected, torch.float32)
    close(conv, after, torch.float32)


@pytest.mark.parametrize("size", ["small", "base"])
def test_a_whole_model_is_what_it_is_on_the_cpu(size):
    torch.manual_seed(0)
    model, x = build_model(MODEL_SIZES[size]).eval(), F.normalize(torch.randn(3, 20, 768), dim=-1)
    with torch.no_grad():
        expected = model.predict_all(x)
        actual = model.cuda().predict_all(x.cuda())
    close(actual.cpu(), expected, torch.float32)


def test_steps_plain_and_captured_equal_the_full_pass():
    torch.manual_seed(0)
    model = build_model(ModelConfig(n_layers=2)).cuda().eval()
    x = F.normalize(torch.randn(1, 12, 768), dim=-1).cuda()
    with torch.no_grad():
        whole = model.predict_all(x)
    plain, cache = model.allocate_inference_cache(1), model.allocate_inference_cache(1)
    for c in (plain, cache):
        close(model.prefill(x[:, :5], None, c), whole[:, 4], torch.float32)
    fast = fast_step(model, cache)
    for t in range(5, 12):
        close(model.step(x[:, t], None, plain), whole[:, t], torch.float32)
        close(fast(x[:, t]), whole[:, t], torch.float32)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("B", "L", "channels"), [(1, 1, 70), (3, 14, 1568), (2, 300, 1569)])
def test_the_triton_convolution_with_gradients(dtype, B, L, channels):
    """Also where causal_conv1d is installed and takes its place."""
    from ocp_mamba.kernels.triton_conv import causal_conv1d

    x = draw(B, L, channels + 9).to(dtype)[..., 3 : 3 + channels]
    inputs = [x.detach(), draw(channels, K, seed=1), draw(channels, seed=2)]
    given = [t.requires_grad_() for t in inputs]
    expected = by_torch(
        lambda *t: with_gradients(ops.causal_conv1d, t),
        *[t.detach().requires_grad_() for t in inputs],
    )
    for ours, theirs in zip(with_gradients(causal_conv1d, given), expected, strict=True):
        close(ours, theirs, dtype)


def test_nothing_is_missing():
    assert cuda.missing() == ""


CAPTURED = {
    "cosine": (ModelConfig(n_layers=2), TrainConfig(precision="float32")),
    "bf16": (ModelConfig(n_layers=2), TrainConfig(precision="bf16")),
    "memory head": (
        ModelConfig(n_layers=2, members=2, n_memory=500),
        TrainConfig(precision="float32", infonce_weight=0.1),
    ),
    "TMD": (ModelConfig(n_layers=2, d_tmd=16), TrainConfig(precision="float32")),
}


@pytest.mark.parametrize("case", CAPTURED)
def test_captured_steps_equal_plain_ones(case):
    model_config, config = CAPTURED[case]
    data = make_dataset(n_chains=300, n_concepts=200, max_length=15, seed=1)
    weights = []
    for capture in (True, False):
        torch.manual_seed(0)
        model = build_model(model_config).cuda()
        how = "auto" if capture else "off"
        fitted = fit(
            model, data, replace(config, max_epochs=1, compile=how),
            validate=lambda model: {"next_vec_cosine": 0.5}, progress=False,
        )  # fmt: skip
        assert fitted.capture.startswith("on (" if capture else "off (asked for)")
        weights.append((fitted.history[0].losses, [p.detach() for p in model.parameters()]))
    (found, ours), (wanted, theirs) = weights
    rel = 1e-2 if config.precision == "bf16" else 1e-4
    assert found == pytest.approx(wanted, rel=rel)
    if config.precision == "float32":  # AdamW's first steps take the sign of the smallest gradients
        for one, two in zip(ours, theirs, strict=True):
            assert (one - two).abs().mean() < 0.01 * config.lr


def test_a_training_goes_on_from_a_captured_one(tmp_path):
    """The state of captured steps is that of plain ones: a CPU can go on with it."""
    data = make_dataset(n_chains=100, n_concepts=50, seed=1)
    config = TrainConfig(max_epochs=3, precision="float32", batch_size=16)
    validate, path = (lambda model: {"next_vec_cosine": 0.5}), tmp_path / "model.pt"

    def interrupt(result):
        if result.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(
            build_model(ModelConfig(n_layers=1)).cuda(), data, config, validate=validate,
            output=path, on_epoch=interrupt, progress=False,
        )  # fmt: skip
    model = build_model(ModelConfig(n_layers=1))
    fitted = fit(model, data, config, validate=validate, output=path, resume=True, progress=False)
    assert len(fitted.history) == 3
    assert fitted.capture == "off (the device is cpu)"
