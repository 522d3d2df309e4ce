"""The convolution and the scan of a Mamba-2 mixer over a whole sequence.

Shapes use the field's letters: ``B`` batch, ``L`` length, ``C`` channels, ``H`` heads,
``P`` head width (headdim), ``N`` state width (d_state), ``K`` convolution width (d_conv).
There is one group of B and C vectors, shared by all heads (mamba_ssm's ``ngroups=1``).

Tensors on a GPU are computed by `kernels.cuda` where `kernels.backend` has chosen it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.kernels import cuda
from ocp_mamba.kernels.backend import kernels_run


def causal_conv1d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Depthwise causal convolution over the length, followed by SiLU.

    It is written as K shifted products, which for the K = 4 of Mamba-2 are several times faster on
    a CPU than a grouped ``conv1d``.

    Args:
        x: ``(B, L, C)``.
        weight: ``(C, K)``; the last column weighs the current position.
        bias: ``(C,)``.

    Returns:
        ``(B, L, C)``.
    """
    if kernels_run(x, cuda.CONVOLUTION):
        return cuda.causal_conv1d(x, weight, bias)
    L, K = x.shape[1], weight.shape[1]
    out = bias + x * weight[:, K - 1]
    for back in range(1, min(K, L)):
        shifted = x[:, : L - back] * weight[:, K - 1 - back]
        out = out + F.pad(shifted, (0, 0, back, 0))
    return F.silu(out)


def ssd_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk_size: int
) -> Tensor:
    """State-space dual scan of Mamba-2: all positions at once, memory linear in the length.

    Computes, for each head, ``h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t^T`` and
    ``y_t = C_t h_t + D x_t`` from ``h_0 = 0``. Inside a chunk the sum over earlier positions is a
    masked matrix product; between chunks only the state is carried. A sequence of one chunk is
    such a product also where there are kernels, which are made for long ones.
    Source: Dao and Gu, "Transformers are SSMs", 2024, section 6.

    Args:
        x: ``(B, L, H, P)`` head inputs.
        dt: ``(B, L, H)`` positive step sizes.
        A: ``(H,)`` negative decay rates.
        B: ``(B, L, N)`` input vectors.
        C: ``(B, L, N)`` output vectors.
        D: ``(H,)`` skip weights.
        chunk_size: positions per chunk; results do not depend on it.

    Returns:
        ``(B, L, H, P)``.
    """
    L = x.shape[1]
    if chunk_size < L and kernels_run(x, cuda.SCAN):
        return cuda.ssd_scan(x, dt, A, B, C, D, chunk_size)
    outputs = []
    state = None
    for start in range(0, L, chunk_size):
        part = slice(start, min(start + chunk_size, L))
        more = part.stop < L
        y, state = _ssd_chunk(x[:, part], dt[:, part], A, B[:, part], C[:, part], state, more)
        outputs.append(y)
    y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
    return y + D[:, None] * x


def _ssd_chunk(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor | None, more: bool
) -> tuple[Tensor, Tensor | None]:
    """One chunk of the scan; ``state`` is ``(B, H, P, N)`` before it, and after it if ``more``."""
    Q = x.shape[1]
    log_decay = (dt * A).cumsum(dim=1).transpose(1, 2)  # (B, H, Q), log of decay since the start
    between = log_decay[..., :, None] - log_decay[..., None, :]  # (B, H, t, s)
    future = torch.ones(Q, Q, dtype=torch.bool, device=x.device).triu(1)
    weights = between.masked_fill(future, float("-inf")).exp()
    weights = weights * (C @ B.transpose(1, 2))[:, None]  # (B, H, t, s)
    dx = (x * dt[..., None]).transpose(1, 2)  # (B, H, Q, P)
    y = weights @ dx
    if state is not None:
        y = y + log_decay.exp()[..., None] * (C[:, None] @ state.transpose(2, 3))
    if not more:
        return y.transpose(1, 2), None
    to_end = (log_decay[..., -1:] - log_decay).exp()[..., None]  # (B, H, Q, 1)
    new_state = (dx * to_end).transpose(2, 3) @ B[:, None]  # (B, H, P, N)
    if state is not None:
        new_state = new_state + log_decay[..., -1].exp()[..., None, None] * state
    return y.transpose(1, 2), new_state
