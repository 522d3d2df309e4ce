"""The choice between plain torch and the CUDA kernels of `kernels.cuda`.

Tensors on a CPU always use plain torch, or the compiled kernels of `kernels.cpu`. For tensors on a
GPU, `use_backend` chooses for the whole process; before its first call, the choice is ``auto``.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ocp_mamba.errors import BackendError
from ocp_mamba.kernels import cuda

BACKENDS = ("auto", "torch", "cuda")
DEVICES = ("auto", "cpu", "cuda")

_requested = "auto"


def resolve_device(requested: str = "auto") -> torch.device:
    """Return the device to compute on; ``auto`` is the GPU where torch sees one, else the CPU.

    Raises:
        BackendError: the name is unknown, or cuda is forced and there is none.
    """
    if requested not in DEVICES:
        raise BackendError(f"device {requested!r} is unknown; choose one of {', '.join(DEVICES)}")
    found = torch.cuda.is_available()
    if requested == "cuda" and not found:
        raise BackendError(
            f"device 'cuda' was forced, but torch {torch.__version__} sees no CUDA device; use "
            "device 'cpu' or 'auto', or install torch's CUDA build on a machine with a GPU"
        )
    return torch.device("cuda" if found and requested != "cpu" else "cpu")


def resolve_backend(requested: str = "auto", device: torch.device | str = "cpu") -> str:
    """Return the name of the backend that runs on a device, ``torch`` or ``cuda``.

    Where ``auto`` finds no CUDA kernels for a part on a GPU, a warning says why and what to do.

    Raises:
        BackendError: the name is unknown, or the backend is forced and cannot run.
    """
    if requested not in BACKENDS:
        raise BackendError(f"backend {requested!r} is unknown; choose one of {', '.join(BACKENDS)}")
    on_gpu = torch.device(device).type == "cuda"
    if requested == "cuda" and not on_gpu:
        raise BackendError(
            f"backend 'cuda' was forced, but the device is {device}; use backend 'torch' or 'auto',"
            " or device 'cuda'"
        )
    if requested == "torch" or not on_gpu:
        return "torch"
    reason = cuda.missing()
    if not reason:
        return "cuda"
    if requested == "cuda":
        raise BackendError(
            f"backend 'cuda' was forced, but {reason}; install it (docs/gpu.md), or use backend "
            "'auto' or 'torch'"
        )
    some = any(map(cuda.has_kernels, cuda.parts()))
    what = "a part of the model" if some else "the model"
    warnings.warn(
        f"{what} runs on the GPU without CUDA kernels, in plain torch, because {reason}; "
        "docs/gpu.md has more, and backend 'torch' avoids this warning",
        stacklevel=2,
    )
    return "cuda" if some else "torch"


def described(requested: str, device: torch.device | str) -> str:
    """Return the backend that runs, and on a GPU what computes each part, for the tracked run.

    Raises:
        BackendError: as `resolve_backend`.
    """
    name = resolve_backend(requested, device)
    return name if name == "torch" else f"{name} ({cuda.described()})"


def use_backend(requested: str, device: torch.device | str) -> str:
    """Choose the backend of the whole process; returns the one that runs.

    Raises:
        BackendError: as `resolve_backend`.
    """
    global _requested
    name = resolve_backend(requested, device)
    _requested = requested
    return name


def kernels_run(x: Tensor, part: str) -> bool:
    """Whether the CUDA kernels compute a part of a mixer, such as `cuda.SCAN`, with this tensor.

    They do not support float64, which is used in comparisons only. Where torch's compiler fuses
    the operations itself, it gets plain torch.
    """
    if not x.is_cuda or x.dtype == torch.float64 or _requested == "torch":
        return False
    return not torch.compiler.is_compiling() and cuda.has_kernels(part)
