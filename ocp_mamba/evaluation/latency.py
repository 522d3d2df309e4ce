"""How long the model alone takes for one prediction, computed as it is when it is served."""

from __future__ import annotations

import time

import torch

from ocp_mamba.config import D_VECTOR
from ocp_mamba.evaluation.names import LATENCY
from ocp_mamba.kernels.cpu import kernels_off
from ocp_mamba.model.base import NextVectorModel, conditions
from ocp_mamba.stats import percentile_ms

CONTEXT, WARMUP, RUNS = 10, 20, 200
"""Vectors in the context; predictions that are made before any is timed; predictions timed."""


def inference_latency(model: NextVectorModel) -> dict[str, float]:
    """Time the model alone on one context of 10 vectors: p50 and p95 in milliseconds.

    The compiled kernels that training may have started are off meanwhile: serving has none.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CONTEXT, D_VECTOR, generator=generator)
    taken = conditions(model, torch.zeros(1, model.d_tmd), torch.zeros(1, CONTEXT, 2))
    seconds = []
    with kernels_off(), torch.inference_mode():
        for _ in range(WARMUP + RUNS):
            started = time.perf_counter()
            model.predict_all(x, **taken)[:, -1]
            seconds.append(time.perf_counter() - started)
    timed = seconds[WARMUP:]
    return {
        LATENCY: percentile_ms(timed, 50),
        f"{LATENCY}_p95": percentile_ms(timed, 95),
    }
