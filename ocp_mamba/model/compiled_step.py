"""A fast `OCPMambaLVM.step` for one sequence, bounded by the memory bandwidth of the weights.

On a CPU the whole step is compiled into one call, which reads the weights once. On a GPU it is
captured as a CUDA graph, which starts hundreds of small kernels at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ocp_mamba.kernels import cpu_memory_head
from ocp_mamba.kernels.graphs import capture_graph
from ocp_mamba.model.cache import InferenceCache
from ocp_mamba.model.lvm import OCPMambaLVM

FastStep = Callable[..., Tensor]
"""Called with ``vector (1, 768)`` and, where the model takes them, ``tmd`` and ``relations``."""


def fast_step(model: OCPMambaLVM, cache: InferenceCache) -> FastStep:
    """Return a step that reads and updates one cache of one sequence.

    Compiling takes about half a minute, needs a C++ compiler and leaves the cache as it is. Where
    it fails, a warning gives the reason and the plain step is returned.

    Args:
        model: in evaluation mode; its weights are not copied, so they may change.
        cache: of one sequence.

    Raises:
        ValueError: the cache is of several sequences.
    """
    if cache.batch != 1:
        raise ValueError(f"a fast step takes one sequence, the cache has {cache.batch}")
    before = cache.select(torch.tensor([0]))
    inputs = _example(model)
    try:
        with torch.no_grad():
            fast = (_captured if inputs[0].is_cuda else _compiled)(model, cache, inputs)
    except Exception as error:  # a compiler fails in many ways; the plain step works in all of them
        first = (str(error).strip() or repr(error)).splitlines()[0]
        warnings.warn(
            f"the step runs without compilation: {type(error).__name__}: {first}; torch.compile "
            "needs a C++ compiler (apt-get install g++)",
            stacklevel=2,
        )

        def fast(vector: Tensor, tmd: Tensor | None, relations: Tensor | None) -> Tensor:
            return _predict_next(model, vector, tmd, cache, relations)
    finally:
        cache.restore(before)

    @torch.no_grad()
    def run(vector: Tensor, tmd: Tensor | None = None, relations: Tensor | None = None) -> Tensor:
        known = {} if relations is None else {"relations": relations}
        model.check_step(vector, tmd, cache, **known)
        if relations is None:
            relations = inputs[2]  # zeros: unknown
        return fast(vector.to(inputs[0].dtype), tmd, relations)

    return run


def _predict_next(
    model: OCPMambaLVM,
    vector: Tensor,
    tmd: Tensor | None,
    cache: InferenceCache,
    relations: Tensor | None,
) -> Tensor:
    """`OCPMambaLVM.step_unchecked` with all arguments in their places."""
    known = {} if relations is None else {"relations": relations}
    return model.step_unchecked(vector, tmd, cache, **known)


def _example(model: OCPMambaLVM) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A vector, and TMD codes and an unknown relation where the model takes them."""
    like, c = model.norm_f.weight.detach(), model.config
    tmd = like.new_zeros(1, c.d_tmd) if c.d_tmd else None
    return like.new_ones(1, c.d_vector), tmd, like.new_zeros(1, 2) if c.relations else None


def _compiled(
    model: OCPMambaLVM, cache: InferenceCache, inputs: tuple[Tensor, Tensor | None, Tensor | None]
) -> FastStep:
    """The step by torch's compiler, ahead of time: the shapes never change, so none is checked."""
    vector, tmd, relations = inputs
    if model.memory_head is not None and len(model.memory_head.memory):
        cpu_memory_head.prepare()
    step = torch.compile(
        _predict_next, fullgraph=True, dynamic=False, options={"size_asserts": False}
    )
    compiled = step.aot_compile(((model, vector, tmd, cache, relations), {}))  # type: ignore[attr-defined]
    compiled.disable_guard_check()

    def run(vector: Tensor, tmd: Tensor | None, relations: Tensor | None) -> Tensor:
        predicted: Tensor = compiled(model, vector, tmd, cache, relations)
        return predicted

    return run


def _captured(
    model: OCPMambaLVM, cache: InferenceCache, inputs: tuple[Tensor, Tensor | None, Tensor | None]
) -> FastStep:
    """The step as a CUDA graph: inputs are copied to where it reads them, then it is replayed."""
    vector, tmd, relations = inputs

    def once() -> Tensor:
        return _predict_next(model, vector, tmd, cache, relations)

    graph, predicted = capture_graph(once)

    def run(*given: Tensor | None) -> Tensor:
        for place, value in zip(inputs, given, strict=True):
            if place is not None and value is not None and place is not value:
                place.copy_(value)
        graph.replay()
        return predicted.clone()

    return run
