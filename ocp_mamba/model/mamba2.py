"""The Mamba-2 layer: norm, mixer, residual. The scan itself is in `ssm_ops` and `ssm_cpu`."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels import cpu, ops

DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 1e-1, 1e-4
A_MIN, A_MAX = 1.0, 16.0
NORM_EPS = 1e-5


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis; with a gate, of ``x * silu(gate)``."""

    def __init__(self, width: int) -> None:
        """Create a norm over ``width`` channels with weight one."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, gate: Tensor | None = None) -> Tensor:
        """Return ``(..., width)`` from ``(..., width)`` and an optional gate of the same shape."""
        if gate is None:
            return self.add(x, None)[0]
        return self._plain(x * F.silu(gate))

    def add(self, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the norm of ``x + residual``, and the sum in the weight's dtype.

        Under autocast a sum over many layers is not rounded with each of them. mamba_ssm's
        ``rms_norm_fn`` does so with ``prenorm`` and ``residual_in_fp32``.
        """
        if cpu.takes(x, self.weight):
            return cpu.add_rms_norm(x, residual, self.weight, NORM_EPS)
        total = x.to(self.weight.dtype) if residual is None else residual + x
        return self._plain(total), total

    def _plain(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.to(self.weight.dtype), (x.shape[-1],), self.weight, NORM_EPS)


class Mamba2Mixer(nn.Module):
    """The Mamba-2 mixer; parameter names and shapes are those of ``mamba_ssm``'s ``Mamba2``.

    Source: Dao and Gu, "Transformers are SSMs", 2024; the initialization is mamba_ssm's.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Create a mixer of the config's widths, initialized by `reset_parameters`."""
        super().__init__()
        self.config = config
        d_inner, N, H = config.d_inner, config.d_state, config.nheads
        d_conv_channels = d_inner + 2 * N
        self.in_proj = nn.Linear(config.d_model, 2 * d_inner + 2 * N + H, bias=False)
        self.conv1d = nn.Conv1d(
            d_conv_channels, d_conv_channels, config.d_conv, groups=d_conv_channels
        )
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.A_log = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.empty(H))
        self.norm = RMSNorm(d_inner)
        self.out_proj = nn.Linear(d_inner, config.d_model, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter anew.

        ``dt_bias`` is the inverse softplus of a log-uniform dt in [0.001, 0.1], ``A_log`` the
        logarithm of a uniform 1..16, ``D`` ones; ``out_proj`` is scaled by ``1/sqrt`` of the
        deepest stack's layers.
        """
        H = self.config.nheads
        nn.init.kaiming_uniform_(self.in_proj.weight, a=math.sqrt(5))
        nn.init.kaiming_uniform_(self.out_proj.weight, a=math.sqrt(5))
        bound = 1 / math.sqrt(self.config.d_conv)
        assert self.conv1d.bias is not None
        nn.init.uniform_(self.conv1d.weight, -bound, bound)
        nn.init.uniform_(self.conv1d.bias, -bound, bound)
        nn.init.ones_(self.D)
        nn.init.ones_(self.norm.weight)
        with torch.no_grad():
            self.out_proj.weight /= math.sqrt(max(self.config.depths))
            log_range = math.log(DT_MAX) - math.log(DT_MIN)
            dt = torch.exp(torch.rand(H) * log_range + math.log(DT_MIN)).clamp(min=DT_FLOOR)
            self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
            self.A_log.copy_(torch.empty(H).uniform_(A_MIN, A_MAX).log())

    def forward(self, u: Tensor) -> Tensor:
        """Return ``(B, L, d_model)`` from ``(B, L, d_model)``; position t sees positions <= t."""
        c = self.config
        zxbcdt = self.in_proj(u)
        conv_weight, conv_bias = self.conv1d.weight.squeeze(1), self.conv1d.bias
        assert conv_bias is not None
        if cpu.takes(zxbcdt, self.D):
            return self.out_proj(
                cpu.mixer_core(
                    zxbcdt, conv_weight, conv_bias, self.dt_bias, -torch.exp(self.A_log), self.D,
                    self.norm.weight, c.d_state, NORM_EPS,
                )
            )  # fmt: skip
        z, xBC, dt = zxbcdt.split([c.d_inner, c.d_inner + 2 * c.d_state, c.nheads], dim=-1)
        xBC = ops.causal_conv1d(xBC, conv_weight, conv_bias)
        x, B, C = xBC.split([c.d_inner, c.d_state, c.d_state], dim=-1)
        y = ops.ssd_scan(
            x.unflatten(-1, (c.nheads, c.headdim)),
            F.softplus(dt + self.dt_bias),
            -torch.exp(self.A_log),
            B,
            C,
            self.D,
            c.chunk_size,
        )
        return self.out_proj(self.norm(y.flatten(-2), gate=z))


class Mamba2Layer(nn.Module):
    """Residual, norm, Mamba-2 mixer; the mixer's output is added before the next norm."""

    def __init__(self, config: ModelConfig) -> None:
        """Create one layer of the config's widths."""
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.mixer = Mamba2Mixer(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what is to be added to the residual, and it, both ``(B, L, d_model)``.

        Arguments are what the layer before returned, as those of mamba_ssm's ``Block``; the first
        layer has no residual.
        """
        normed, residual = self.norm.add(x, residual)
        return self.dropout(self.mixer(normed)), residual
