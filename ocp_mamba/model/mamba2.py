"""The Mamba-2 layer: norm, mixer, residual, over a whole sequence or one position at a time.

Shapes, as in the paper: B sequences, L positions, H heads of P channels, N the state's size. The
convolution and the scan themselves are in `kernels`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.kernels import cpu, ops, step
from ocp_mamba.model.cache import LayerState
from ocp_mamba.model.quantize import linear

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

        The sum over the layers therefore stays in float32 under autocast, as in mamba_ssm's
        ``rms_norm_fn`` with ``prenorm`` and ``residual_in_fp32``.
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
        c, zxbcdt = self.config, self.in_proj(u)
        conv_weight, conv_bias = self._conv()
        if cpu.takes(zxbcdt, self.D):
            return self.out_proj(
                cpu.mixer_core(
                    zxbcdt, conv_weight, conv_bias, self.dt_bias, -torch.exp(self.A_log), self.D,
                    self.norm.weight, c.d_state, NORM_EPS,
                )
            )  # fmt: skip
        z, xBC, dt = self._split(zxbcdt)
        x, B, C = self._heads(ops.causal_conv1d(xBC, conv_weight, conv_bias))
        dt = F.softplus(dt + self.dt_bias)
        y = ops.ssd_scan(x, dt, -torch.exp(self.A_log), B, C, self.D, c.chunk_size)
        return self.out_proj(self.norm(y.flatten(-2), gate=z))

    def prefill(
        self, u: Tensor, state: LayerState, lengths: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """Return ``(B, L, d_model)`` from ``(B, L, d_model)``, continued from a state.

        Args:
            u: right-padded.
            state: read, and updated in place.
            lengths: ``(B,)`` valid positions of each row, or None for all.
            valid: the same as a mask ``(B, L)``, or None.
        """
        z, xBC, dt = self._split(self.in_proj(u))
        xBC = step.conv_from_state(xBC, state.conv_state, *self._conv(), lengths)
        x, B, C = self._heads(xBC)
        dt = F.softplus(dt + self.dt_bias)
        if valid is not None:
            dt = dt * valid[..., None]
        A, size = -torch.exp(self.A_log), self.config.chunk_size
        y = step.scan_from_state(x, dt, A, B, C, self.D, size, state.ssm_state)
        return self.out_proj(self.norm(y.flatten(-2), gate=z))

    def step(self, u: Tensor, state: LayerState) -> Tensor:
        """Return ``(B, d_model)`` from one position ``(B, d_model)``; the state is updated."""
        z, xBC, dt = self._split(linear(self.in_proj, u))
        x, B, C = self._heads(step.conv_step(xBC, state.conv_state, *self._conv()))
        dt = F.softplus(dt + self.dt_bias)
        y = step.ssm_step(x, dt, -torch.exp(self.A_log), B, C, self.D, state.ssm_state)
        return linear(self.out_proj, self.norm(y.flatten(-2), gate=z))

    def _split(self, zxbcdt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the output of `in_proj` into the gate z, the convolution's input xBC, and dt."""
        c = self.config
        z, xBC, dt = zxbcdt.split([c.d_inner, c.d_inner + 2 * c.d_state, c.nheads], dim=-1)
        return z, xBC, dt

    def _heads(self, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the convolution's output into x ``(..., H, P)``, B and C ``(..., N)``."""
        c = self.config
        x, B, C = xBC.split([c.d_inner, c.d_state, c.d_state], dim=-1)
        return x.unflatten(-1, (c.nheads, c.headdim)), B, C

    def _conv(self) -> tuple[Tensor, Tensor]:
        """Weight ``(C, K)`` and bias ``(C,)`` of the convolution."""
        assert self.conv1d.bias is not None
        return self.conv1d.weight.squeeze(1), self.conv1d.bias


class Mamba2Layer(nn.Module):
    """Residual, norm, Mamba-2 mixer; the mixer's output is added before the next norm."""

    def __init__(self, config: ModelConfig) -> None:
        """Create one layer of the config's widths."""
        super().__init__()
        self.norm = RMSNorm(config.d_model)
        self.mixer = Mamba2Mixer(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the output to add to the residual, and the residual, both ``(B, L, d_model)``.

        The arguments are what the layer before returned, as in mamba_ssm's ``Block``; the first
        layer has no residual.
        """
        normed, residual = self.norm.add(x, residual)
        return self.dropout(self.mixer(normed)), residual

    def prefill(
        self, x: Tensor, state: LayerState, lengths: Tensor | None, valid: Tensor | None
    ) -> Tensor:
        """Return ``(B, L, d_model)``, residual added; arguments as `Mamba2Mixer.prefill`."""
        return x + self.mixer.prefill(self.norm(x), state, lengths, valid)

    def step(self, x: Tensor, state: LayerState) -> Tensor:
        """Return one position ``(B, d_model)``, residual added; the state is updated in place."""
        return x + self.mixer.step(self.norm(x), state)
