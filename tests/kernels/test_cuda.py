"""The CUDA backend's calls, checked without a GPU: plain torch stands in for each kernel.

Two sets of stand-ins. Ours, with the kernels' own signatures and shapes, always run. mamba_ssm's
and causal_conv1d's own references run where those packages are installed (without kernels will do:
docs/gpu.md says how). The kernels themselves are compared in test_gpu.py.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocp_mamba.kernels import cuda, ops, step

SSD = "mamba_ssm.ops.triton.ssd_combined"
UPDATE = "mamba_ssm.ops.triton.selective_state_update"


ALL = {
    cuda.SCAN: cuda.Part("mamba_ssm"),
    cuda.STEP: cuda.Part("mamba_ssm"),
    cuda.CONVOLUTION: cuda.Part("causal_conv1d"),
}


def chunk_scan(x, dt, A, B, C, chunk_size, D=None, z=None, dt_bias=None, dt_softplus=False):
    """(B, L, H, P), (B, L, H), (H,), (B, L, G, N) twice, int, (H,); the recurrence, in float64."""
    assert chunk_size >= 16
    assert chunk_size.bit_count() == 1  # others gave NaN
    assert (z, dt_bias, dt_softplus) == (None, None, False)
    assert B.shape == C.shape == (*x.shape[:2], 1, B.shape[-1])
    assert isinstance(chunk_size, int)
    x64, state, out = x.double(), x.new_zeros(len(x), *x.shape[2:], B.shape[-1]).double(), []
    for t in range(x.shape[1]):
        state = state * (dt[:, t] * A).exp()[..., None, None]
        state = state + torch.einsum("bh,bhp,bn->bhpn", dt[:, t], x64[:, t], B[:, t, 0].double())
        out.append(torch.einsum("bhpn,bn->bhp", state, C[:, t, 0].double()) + D[:, None] * x[:, t])
    return torch.stack(out, dim=1).to(x)


def state_update(state, x, dt, A, B, C, D=None, z=None, dt_bias=None, dt_softplus=False):
    """(B, H, P, N), (B, H, P) twice, (H, P, N), (B, G, N) twice, (H, P); every element its own."""
    assert (z, dt_softplus) == (None, False)
    assert dt.shape == x.shape == state.shape[:3]
    assert A.shape == state.shape[1:]
    assert D.shape == dt_bias.shape == state.shape[1:3]
    assert B.shape == C.shape == (len(x), 1, state.shape[3])
    same_in_a_head = (A.stride(-1), A.stride(-2), dt.stride(-1), dt_bias.stride(-1))
    assert same_in_a_head == (0, 0, 0, 0)  # the kernel's quick way
    dt = dt + dt_bias
    state.mul_((dt[..., None] * A).exp()).add_(dt[..., None] * x[..., None] * B[:, :, None])
    return (state * C[:, :, None]).sum(-1) + D * x


def conv_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False,
            final_states_out=None, activation=None):  # fmt: skip
    """(B, C, L), (C, K), (C,); what is not contiguous must have strides that are multiples of 8."""
    assert activation == "silu"
    assert x.is_contiguous() or (x.stride(1) == 1 and x.stride(0) % 8 == x.stride(2) % 8 == 0)
    K = weight.shape[1]
    return F.silu(F.conv1d(F.pad(x, (K - 1, 0)), weight[:, None], bias, groups=len(weight)))


def conv_update(x, conv_state, weight, bias=None, activation=None):
    """(B, C), (B, C, K), (C, K), (C,)."""
    assert activation == "silu"
    assert x.dtype == conv_state.dtype
    conv_state.copy_(torch.cat([conv_state[..., 1:], x[..., None]], -1))
    return F.silu((conv_state * weight).sum(-1) + bias)


def ours(monkeypatch):
    for name in (
        "mamba_ssm",
        "mamba_ssm.ops",
        "mamba_ssm.ops.triton",
        SSD,
        UPDATE,
        "causal_conv1d",
    ):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    return chunk_scan, state_update, conv_fn, conv_update


def theirs(monkeypatch):
    """The packages' own references; a placeholder stands for the compiled parts they import."""
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", ModuleType("causal_conv1d_cuda"))
    try:
        ssd = cuda.mamba_ssm_module(cuda.SCAN_MODULE)
        update = cuda.mamba_ssm_module(cuda.STEP_MODULE)
        conv = importlib.import_module("causal_conv1d.causal_conv1d_interface")
    except ImportError as error:
        pytest.skip(f"their references were not compared: {error} (docs/gpu.md: without kernels)")

    def scan(x, dt, A, B, C, chunk_size, D=None):
        padding = -x.shape[1] % chunk_size  # their reference wants whole chunks
        x, B, C = (F.pad(v, (0, 0, 0, 0, 0, padding)) for v in (x, B, C))
        dt = F.pad(dt, (0, 0, 0, padding))
        out = ssd.ssd_chunk_scan_combined_ref(x, dt, A, B, C, chunk_size, D=D)
        return out[:, : out.shape[1] - padding]

    return (
        scan,
        update.selective_state_update_ref,
        conv.causal_conv1d_ref,
        conv.causal_conv1d_update_ref,
    )


@pytest.fixture(params=[ours, theirs], ids=["our stand-ins", "their references"])
def kernels(request, monkeypatch):
    scan, update, conv, conv_one = request.param(monkeypatch)
    monkeypatch.setattr(cuda, "parts", lambda: ALL)
    for module, name, function in (
        (SSD, "mamba_chunk_scan_combined", scan),
        (UPDATE, "selective_state_update", update),
        ("causal_conv1d", "causal_conv1d_fn", conv),
        ("causal_conv1d", "causal_conv1d_update", conv_one),
    ):
        monkeypatch.setattr(sys.modules[module], name, function, raising=False)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


shapes = given(
    B=st.integers(1, 3),
    L=st.integers(1, 20),
    H=st.integers(1, 4),
    P=st.integers(2, 5),
    N=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@quick
@shapes
def test_scan(kernels, B, L, H, P, N, seed):
    x, dt = draw(B, L, H, P, seed=seed), F.softplus(draw(B, L, H, seed=seed + 1))
    A, D = -draw(H, seed=seed + 2).exp(), draw(H, seed=seed + 3)
    b, c = draw(B, L, N, seed=seed + 4), draw(B, L, N, seed=seed + 5)
    close(cuda.ssd_scan(x, dt, A, b, c, D, 8), ops.ssd_scan(x, dt, A, b, c, D, 8))
    close(cuda.ssd_scan(x, dt, A, b, c, D, 20), ops.ssd_scan(x, dt, A, b, c, D, 20))


@quick
@shapes
def test_one_position_of_the_scan(kernels, B, L, H, P, N, seed):
    x, dt = draw(B, H, P, seed=seed), F.softplus(draw(B, H, seed=seed + 1))
    A, D = -draw(H, seed=seed + 2).exp(), draw(H, seed=seed + 3)
    b, c, state = draw(B, N, seed=seed + 4), draw(B, N, seed=seed + 5), draw(B, H, P, N, seed=seed)
    after = state.clone()
    expected = step.ssm_step(x, dt, A, b, c, D, after)
    close(cuda.ssm_step(x, dt, A, b, c, D, state), expected)
    close(state, after)


@quick
@given(B=st.integers(1, 3), L=st.integers(1, 20), C=st.integers(1, 20), K=st.integers(2, 4))
def test_convolution(kernels, B, L, C, K):
    wide, weight, bias = draw(B, L, C + 5, seed=L), draw(C, K, seed=1), draw(C, seed=2)
    x = wide[..., 3 : 3 + C]  # as it comes: a part of the projection's columns
    close(cuda.causal_conv1d(x, weight, bias), ops.causal_conv1d(x, weight, bias))


@quick
@given(B=st.integers(1, 3), C=st.integers(1, 20), K=st.integers(2, 4))
def test_one_position_of_the_convolution(kernels, B, C, K):
    x, weight, bias, state = draw(B, C), draw(C, K, seed=1), draw(C, seed=2), draw(B, C, K, seed=3)
    after = state.clone()
    expected = step.conv_step(x, after, weight, bias)
    close(cuda.conv_step(x, state, weight, bias), expected)
    close(state, after)


def test_a_width_without_a_kernel_is_refused(monkeypatch):
    monkeypatch.setattr(cuda, "parts", lambda: ALL)
    with pytest.raises(ValueError, match="widths 2, 3, 4, not 5; use backend 'torch'"):
        cuda.causal_conv1d(draw(1, 3, 2), draw(2, 5), draw(2))
    with pytest.raises(ValueError, match="widths 2, 3, 4, not 5"):
        cuda.conv_step(draw(1, 2), draw(1, 2, 5), draw(2, 5), draw(2))


def test_the_four_operations_are_sent_to_the_kernels_by_one_switch(kernels, monkeypatch):
    """With the switch on, the ops give what the stand-ins give, and call nothing else."""
    called = []
    for name in ("causal_conv1d", "ssd_scan", "conv_step", "ssm_step"):
        original = getattr(cuda, name)
        monkeypatch.setattr(cuda, name, lambda *a, n=name, f=original: called.append(n) or f(*a))
    for module in (ops, step):
        monkeypatch.setattr(module, "kernels_run", lambda x, part: True)
    x, dt, A, D = draw(2, 5, 3, 4), F.softplus(draw(2, 5, 3)), -draw(3).exp(), draw(3)
    b, state = draw(2, 5, 6), draw(2, 3, 4, 6)
    ops.ssd_scan(x, dt, A, b, b, D, 8)  # one chunk: a dense product is faster
    ops.ssd_scan(x, dt, A, b, b, D, 4)
    ops.causal_conv1d(b, draw(6, 4), draw(6))
    step.ssm_step(x[:, 0], dt[:, 0], A, b[:, 0], b[:, 0], D, state)
    step.conv_step(b[:, 0], draw(2, 6, 4), draw(6, 4), draw(6))
    assert called == ["ssd_scan", "causal_conv1d", "ssm_step", "conv_step"]


def test_without_causal_conv1d_one_position_of_the_convolution_is_plain_torch(monkeypatch):
    monkeypatch.setattr(cuda, "parts", lambda: ALL | {cuda.CONVOLUTION: cuda.Part("triton")})
    monkeypatch.setattr(step, "kernels_run", lambda x, part: True)
    x, weight, bias, state = draw(2, 6), draw(6, 4), draw(6), draw(2, 6, 4)
    seen = torch.cat([state[..., 1:], x[..., None]], dim=-1)
    close(step.conv_step(x, state, weight, bias), F.silu((seen * weight).sum(-1) + bias))
