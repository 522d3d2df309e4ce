"""The convolution and the scan of a Mamba-2 mixer, continued from a state.

Two states hold what the earlier positions contribute: ``conv_state`` ``(B, C, K)``, the last K
inputs of the convolution, newest last, and ``ssm_state`` ``(B, H, P, N)``. Names and shapes are
mamba_ssm's. Both are updated in place. The letters are those of `kernels.ops`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.kernels import cuda, ops
from ocp_mamba.kernels.backend import kernels_run


def conv_step(x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """One position of `ops.causal_conv1d`: ``(B, C)`` from ``(B, C)``."""
    if kernels_run(x, cuda.CONVOLUTION) and cuda.steps_convolution():
        return cuda.conv_step(x, conv_state, weight, bias)
    seen = torch.cat([conv_state.mT[:, 1:], x[:, None]], dim=1)  # (B, K, C)
    conv_state.mT.copy_(seen)
    return F.silu((seen * weight.mT).sum(dim=1) + bias)


def ssm_step(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, ssm_state: Tensor
) -> Tensor:
    """One position of `ops.ssd_scan`.

    Args:
        x: ``(B, H, P)`` head inputs.
        dt: ``(B, H)`` positive step sizes.
        A: ``(H,)`` negative decay rates.
        B: ``(B, N)`` input vectors.
        C: ``(B, N)`` output vectors.
        D: ``(H,)`` skip weights.
        ssm_state: ``(B, H, P, N)``.

    Returns:
        ``(B, H, P)``.
    """
    if kernels_run(x, cuda.STEP):
        return cuda.ssm_step(x, dt, A, B, C, D, ssm_state)
    ssm_state.mul_((dt * A).exp()[..., None, None])
    ssm_state.add_((dt[..., None] * x)[..., None] * B[:, None, None])
    y = (ssm_state * C[:, None, None]).sum(dim=-1)
    return y + D[:, None] * x


def conv_from_state(
    x: Tensor, conv_state: Tensor, weight: Tensor, bias: Tensor, lengths: Tensor | None
) -> Tensor:
    """`ops.causal_conv1d` of ``(B, L, C)``, continued from ``conv_state``.

    ``lengths`` ``(B,)`` are the valid positions of each right-padded row; None means L for all.
    """
    K = weight.shape[1]
    seen = torch.cat([conv_state.transpose(1, 2), x], dim=1)  # (B, K + L, C)
    if lengths is None:
        conv_state.copy_(seen[:, -K:].transpose(1, 2))
    else:
        last = lengths[:, None] + torch.arange(K, device=x.device)  # places in `seen`
        conv_state.copy_(seen[torch.arange(len(x), device=x.device)[:, None], last].mT)
    return ops.causal_conv1d(seen[:, 1:], weight, bias)[:, K - 1 :]


def scan_from_state(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    chunk_size: int,
    ssm_state: Tensor,
) -> Tensor:
    """`ops.ssd_scan` that starts from ``ssm_state`` instead of zeros.

    The scan is linear in its first state: its output is that of a scan from zeros plus the decayed
    contribution of the first state. A position with ``dt`` 0 does not change the state; so does
    padding.
    """
    y = ops.ssd_scan(x, dt, A, B, C, D, chunk_size)
    log_decay = dt * A  # (B, L, H)
    since_start = log_decay.cumsum(dim=1).exp()
    y = y + since_start[..., None] * torch.einsum("bln,bhpn->blhp", C, ssm_state)
    # Summed from the end: a difference of two long sums would lose small terms to rounding.
    after = log_decay.flip(1).cumsum(dim=1).flip(1) - log_decay
    weighted = x * (dt * after.exp())[..., None]
    ssm_state.mul_(since_start[:, -1, :, None, None])
    ssm_state.add_(torch.einsum("blhp,bln->bhpn", weighted, B))
    return y
