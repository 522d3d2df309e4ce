"""The memory head for one new vector on a CPU, in one pass over the stored rows.

The source is `csrc/memory_head.h`, which `cpu` compiles. The kernel must equal
`model.memory_head.MemoryHead.mixture`, of which torch's compiler makes several loops.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from ocp_mamba import errors
from ocp_mamba.kernels import cpu

_prepared = False


def prepare() -> None:
    """Let compiled steps use the kernel; a warning says why where it cannot be compiled."""
    global _prepared
    try:
        cpu.library()
        _register()
        _prepared = True
    except errors.CompileError as error:
        warnings.warn(
            f"the memory head is compiled by torch, not by its own kernel: {error}", stacklevel=2
        )


def takes(queries: Tensor, memory: Tensor) -> bool:
    """Whether the kernel computes with queries ``(M, ..., D)``: one position, a compiled step."""
    return (
        _prepared
        and torch.compiler.is_compiling()
        and queries.device.type == "cpu"
        and queries.numel() == queries.shape[0] * queries.shape[-1]
        and queries.dtype == cpu.computed_in(memory.dtype)
        and memory.dtype in cpu.KINDS
    )


def read_memory(queries: Tensor, memory: Tensor, temperature: float) -> Tensor:
    """Return the mean over M queries of ``softmax(queries @ memory.T / temperature) @ memory``.

    Args:
        queries: ``(M, D)`` float32, or float64 with a memory in float64.
        memory: ``(n, D)`` in bfloat16, float32 or float64.
        temperature: divisor of the inner products.

    Returns:
        ``(D,)`` in the queries' dtype.
    """
    memory, queries = memory.contiguous(), queries.contiguous()
    (n, width), out = memory.shape, queries.new_empty(queries.shape[1])
    sizes = cpu.Sizes(len(queries), n, 1, width, 1, 1, temperature)
    cpu.call("read_memory", memory.dtype, sizes, memory, queries, out)
    return out


@functools.cache
def _register() -> None:
    """Register `read_memory` as a torch operation, which torch's compiler does not look into."""
    operation = torch.library.custom_op("ocp_mamba::read_memory", read_memory, mutates_args=())
    operation.register_fake(
        lambda queries, memory, temperature: queries.new_empty(queries.shape[1])
    )
