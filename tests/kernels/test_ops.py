import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.kernels import ops


def draw(shape, seed):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scan_inputs(B, L, H, P, N, seed=0):
    x, B_, C_ = draw((B, L, H, P), seed), draw((B, L, N), seed + 1), draw((B, L, N), seed + 2)
    dt = F.softplus(draw((B, L, H), seed + 3))
    A = -torch.exp(draw((H,), seed + 4))
    return [t.requires_grad_() for t in (x, dt, A, B_, C_, draw((H,), seed + 5))]


def recurrence(x, dt, A, B, C, D):
    """The definition, one position at a time."""
    state = torch.zeros(*x.shape[:1], *x.shape[2:], B.shape[-1], dtype=x.dtype)
    out = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        state = decay * state + torch.einsum("bhp,bn,bh->bhpn", x[:, t], B[:, t], dt[:, t])
        out.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(out, dim=1)


@settings(max_examples=40, deadline=None)
@given(
    B=st.integers(1, 3),
    L=st.integers(1, 23),
    H=st.integers(1, 3),
    P=st.integers(1, 4),
    N=st.integers(1, 5),
    chunk_size=st.integers(1, 24),
    seed=st.integers(0, 10_000),
)
def test_scan_equals_the_recurrence_in_outputs_and_gradients(B, L, H, P, N, chunk_size, seed):
    inputs = scan_inputs(B, L, H, P, N, seed)
    weights = draw((B, L, H, P), seed + 6)
    fast, slow = ops.ssd_scan(*inputs, chunk_size), recurrence(*inputs)
    torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)
    for a, b in zip(
        torch.autograd.grad((fast * weights).sum(), inputs),
        torch.autograd.grad((slow * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_scan_stays_finite_with_extreme_decay():
    x, dt, A, B, C, D = scan_inputs(1, 70, 2, 3, 4)
    y = ops.ssd_scan(x, dt * 100, A * 1000, B, C, D, 16)
    (grad,) = torch.autograd.grad(y.sum(), [x])
    assert torch.isfinite(y).all()
    assert torch.isfinite(grad).all()


@settings(max_examples=30, deadline=None)
@given(L=st.integers(1, 9), C=st.integers(1, 5), K=st.integers(1, 5), seed=st.integers(0, 10_000))
def test_conv_equals_torchs_grouped_convolution(L, C, K, seed):
    x, weight, bias = draw((2, L, C), seed), draw((C, K), seed + 1), draw((C,), seed + 2)
    padded = F.pad(x.transpose(1, 2), (K - 1, 0))
    expected = F.silu(F.conv1d(padded, weight[:, None], bias, groups=C)).transpose(1, 2)
    torch.testing.assert_close(ops.causal_conv1d(x, weight, bias), expected)
