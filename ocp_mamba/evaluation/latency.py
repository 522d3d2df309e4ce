"""TODO."""

from __future__ import annotations

import time

import torch

from ocp_mamba.config import D_VECTOR
from ocp_mamba.model.base import NextVectorModel, conditions
from ocp_mamba.stats import percentile_ms

LATENCY_CONTEXT = 10


LATENCY_WARMUP, LATENCY_RUNS = 20, 200


def inference_latency(model: NextVectorModel) -> dict[str, float]:
    """Time the model alone on one context of 10 vectors: p50 and p95 in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, LATENCY_CONTEXT, D_VECTOR, generator=generator)
    taken = conditions(model, torch.zeros(1, model.d_tmd), torch.zeros(1, LATENCY_CONTEXT, 2))
    seconds = []
    with torch.inference_mode():
        for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
            started = time.perf_counter()
            model.predict_all(x, **taken)[:, -1]
            seconds.append(time.perf_counter() - started)
    timed = seconds[LATENCY_WARMUP:]
    return {
        "inference_latency_ms": percentile_ms(timed, 50),
        "inference_latency_ms_p95": percentile_ms(timed, 95),
    }
