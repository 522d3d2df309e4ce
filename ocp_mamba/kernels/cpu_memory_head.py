"""What a model recalls for one new vector, on a CPU: one pass over what is remembered.

The home of `ssm_cpu_recall.h`, which `ssm_cpu` compiles. The plain torch version is
`MemoryHead.mixture`, which this must equal; torch's compiler makes several loops of that.
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
    """Let compiled steps from now on recall by the kernel; a warning says why where they cannot."""
    global _prepared
    try:
        cpu.library()
        _register()
        _prepared = True
    except errors.CompileError as error:
        warnings.warn(f"recalling is left to torch's compiler: {error}", stacklevel=2)


def takes(queries: Tensor, memory: Tensor) -> bool:
    """Whether the kernel is for queries ``(M, ..., D)``: of one position, in a compiled step."""
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
    cpu.call("recall", memory.dtype, sizes, memory, queries, out)
    return out


@functools.cache
def _register() -> None:
    """Make `recall` an operation of torch's, which its compiler calls as it is."""
    made = torch.library.custom_op("ocp_mamba::read_memory", read_memory, mutates_args=())
    made.register_fake(lambda queries, memory, temperature: queries.new_empty(queries.shape[1]))
