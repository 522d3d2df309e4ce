"""One vector at a time: what a model remembers of a sequence, and the passes that go on from it.

A step costs the same after 10 vectors or 10,000, for the memory has a fixed size.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.kernels import step as step_ops
from ocp_mamba.model.cache import InferenceCache, LayerState
from ocp_mamba.model.linear import linear

if TYPE_CHECKING:
    from ocp_mamba.model.lvm import OCPMambaLVM
    from ocp_mamba.model.mamba2 import Mamba2Layer, Mamba2Mixer


def empty_cache(model: OCPMambaLVM, batch: int) -> InferenceCache:
    """Return a cache that has seen nothing, on the model's device."""
    c = model.config
    like = model.norm_f.weight.detach()
    return InferenceCache(
        tuple(
            LayerState(
                # channels last in memory, as mamba_ssm allocates it
                like.new_zeros(batch, c.d_conv, c.d_inner + 2 * c.d_state).transpose(1, 2),
                like.new_zeros(batch, c.nheads, c.headdim, c.d_state),
            )
            for _ in range(c.n_layers)
        )
    )


def prefill(
    model: OCPMambaLVM,
    seq_vectors: Tensor,
    tmd: Tensor | None,
    cache: InferenceCache,
    lengths: Tensor | None = None,
    relations: Tensor | None = None,
) -> Tensor:
    """See `OCPMambaLVM.prefill`."""
    B, L = seq_vectors.shape[:2]
    valid = None
    if lengths is not None:
        valid = torch.arange(L, device=seq_vectors.device) < lengths[:, None]
    embedded = model.embed(seq_vectors, tmd, relations)
    last = L - 1 if lengths is None else lengths - 1
    rows = torch.arange(B, device=embedded.device)
    predictions = []
    for stack in _with_states(model, cache):
        x = embedded
        for layer, state in stack:
            x = x + _mixer_prefill(layer.mixer, layer.norm(x), state, lengths, valid)
        predictions.append(model.head(x[rows, last], seq_vectors.dtype))
    return model.conclude(torch.stack(predictions))


def _mixer_prefill(
    mixer: Mamba2Mixer,
    u: Tensor,
    state: LayerState,
    lengths: Tensor | None,
    valid: Tensor | None,
) -> Tensor:
    """The mixer over ``(B, L, d_model)``, going on from a state; ``valid`` is ``(B, L)``."""
    c = mixer.config
    z, xBC, dt = mixer.in_proj(u).split([c.d_inner, c.d_inner + 2 * c.d_state, c.nheads], dim=-1)
    xBC = step_ops.conv_from_state(xBC, state.conv_state, *_conv(mixer), lengths)
    x, B, C = xBC.split([c.d_inner, c.d_state, c.d_state], dim=-1)
    dt = F.softplus(dt + mixer.dt_bias)
    if valid is not None:
        dt = dt * valid[..., None]
    y = step_ops.scan_from_state(
        x.unflatten(-1, (c.nheads, c.headdim)),
        dt,
        -torch.exp(mixer.A_log),
        B,
        C,
        mixer.D,
        c.chunk_size,
        state.ssm_state,
    )
    return mixer.out_proj(mixer.norm(y.flatten(-2), gate=z))


def step(
    model: OCPMambaLVM,
    vector: Tensor,
    tmd: Tensor | None,
    cache: InferenceCache,
    relation: Tensor | None = None,
) -> Tensor:
    """See `OCPMambaLVM.step`."""
    embedded = model.embed(vector, tmd, relation)
    last = []
    for stack in _with_states(model, cache):
        x = embedded
        for layer, state in stack:
            x = layer_step(layer, x, state)
        last.append(x)
    return model.conclude(model.head(torch.stack(last), vector.dtype))


def layer_step(layer: Mamba2Layer, x: Tensor, state: LayerState) -> Tensor:
    """One position ``(B, d_model)`` through one layer."""
    mixer, c = layer.mixer, layer.mixer.config
    z, xBC, dt = linear(mixer.in_proj, layer.norm(x)).split(
        [c.d_inner, c.d_inner + 2 * c.d_state, c.nheads], dim=-1
    )
    xBC = step_ops.conv_step(xBC, state.conv_state, *_conv(mixer))
    inner, B, C = xBC.split([c.d_inner, c.d_state, c.d_state], dim=-1)
    y = step_ops.ssm_step(
        inner.unflatten(-1, (c.nheads, c.headdim)),
        F.softplus(dt + mixer.dt_bias),
        -torch.exp(mixer.A_log),
        B,
        C,
        mixer.D,
        state.ssm_state,
    )
    return x + linear(mixer.out_proj, mixer.norm(y.flatten(-2), gate=z))


def _with_states(
    model: OCPMambaLVM, cache: InferenceCache
) -> Iterator[list[tuple[Mamba2Layer, LayerState]]]:
    """Each member's layers, each with its memory."""
    states = iter(cache.layers)
    for stack in model.stacks():
        yield [(cast("Mamba2Layer", layer), next(states)) for layer in stack]


def _conv(mixer: Mamba2Mixer) -> tuple[Tensor, Tensor]:
    """Weight ``(C, K)`` and bias ``(C,)`` of the convolution."""
    assert mixer.conv1d.bias is not None
    return mixer.conv1d.weight.squeeze(1), mixer.conv1d.bias


def rollout(
    model: OCPMambaLVM,
    context: Tensor,
    steps: int,
    tmd: Tensor | None = None,
    lengths: Tensor | None = None,
    relations: Tensor | None = None,
) -> Tensor:
    """Predict several vectors ahead, each prediction fed back as the next input.

    Args:
        model: in evaluation mode.
        context: ``(B, L, 768)``, right-padded.
        steps: vectors wanted, 1 or more.
        tmd: as `OCPMambaLVM.forward`.
        lengths: as `OCPMambaLVM.forward`.
        relations: of the context, as `OCPMambaLVM.forward`; by which relation a prediction follows
            is unknown.

    Returns:
        ``(B, steps, 768)`` unit rows.

    Raises:
        ValueError: ``steps`` is below 1, or a shape does not fit.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    cache = model.allocate_inference_cache(len(context))
    predicted = [model.prefill(context, tmd, cache, lengths, relations)]
    while len(predicted) < steps:
        predicted.append(model.step(predicted[-1], tmd, cache))
    return torch.stack(predicted, dim=1)
