"""A function's GPU kernels as one CUDA graph, which starts all of them at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

WARMUP = 3
"""Calls before a capture, in which kernels are tuned and memory is allocated."""

T = TypeVar("T")


def capture_graph(
    once: Callable[[], T], pool: tuple[int, int] | None = None
) -> tuple[torch.cuda.CUDAGraph, T]:
    """Call a function a few times, then capture one call.

    Args:
        once: has the same shapes and addresses each time.
        pool: memory that graphs share, of `torch.cuda.graph_pool_handle`.

    Returns:
        The graph, and what the captured call returned, whose tensors each replay fills.

    Raises:
        RuntimeError: an operation of it cannot be captured.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARMUP):
            once()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    shared: Any = pool
    with torch.cuda.graph(graph, pool=shared):
        returned = once()
    return graph, returned
