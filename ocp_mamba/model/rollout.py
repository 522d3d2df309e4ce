"""Several vectors ahead, each prediction fed back as the next input."""

from __future__ import annotations

import torch
from torch import Tensor

from ocp_mamba.model.lvm import OCPMambaLVM


def rollout(
    model: OCPMambaLVM,
    context: Tensor,
    steps: int,
    tmd: Tensor | None = None,
    lengths: Tensor | None = None,
    **conditions: Tensor | None,
) -> Tensor:
    """Predict several vectors ahead.

    Args:
        model: in evaluation mode.
        context: ``(B, L, 768)``, right-padded.
        steps: vectors wanted, 1 or more.
        tmd: as `OCPMambaLVM.forward`.
        lengths: as `OCPMambaLVM.forward`.
        conditions: further inputs of a subclass, for the context only: the relation by which a
            prediction follows is unknown.

    Returns:
        ``(B, steps, 768)`` unit rows.

    Raises:
        ValueError: ``steps`` is below 1, or a shape does not fit.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    cache = model.allocate_inference_cache(len(context))
    predicted = [model.prefill(context, tmd, cache, lengths, **conditions)]
    while len(predicted) < steps:
        predicted.append(model.step(predicted[-1], tmd, cache))
    return torch.stack(predicted, dim=1)
