"""Compiled CPU kernels of a Mamba-2 mixer and its norms, which read memory once, not thirty times.

The source is `csrc/mixer.cpp`. The machine's C++ compiler makes a library of it, once per machine
and version, in the user's cache folder. The kernels must equal the plain torch version in
`model.mamba2.Mamba2Mixer`, which runs unless `use` is called, and where there is no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ocp_mamba.errors import CompileError
from ocp_mamba.system.cpu_info import described

SOURCE = Path(__file__).parent / "csrc" / "mixer.cpp"
SOURCES = (SOURCE, *sorted(SOURCE.parent.glob("*.h")))
FLAGS = (
    "-O3", "-march=native", "-std=c++17", "-fopenmp", "-fPIC", "-shared",
    "-fno-math-errno", "-fno-trapping-math",
)  # fmt: skip
COMPILERS = ("c++", "g++", "clang++")
COMPILE_LIMIT_S = 120
BLOCK = 64
"""Positions between the states that `mixer.cpp` keeps for the backward pass."""
KINDS = {torch.bfloat16: 0, torch.float32: 1, torch.float64: 2}
"""Number of each dtype of the stored tensors in `mixer.cpp`."""

_in_use = False


@dataclass(frozen=True)
class Library:
    """The loaded kernels; ``seconds`` is the time to load, and maybe compile, them."""

    handle: ctypes.CDLL
    path: Path
    compiled: bool
    seconds: float


class Sizes(ctypes.Structure):
    """The struct ``Sizes`` of `mixer.cpp`; `call` sets the threads."""

    _fields_ = [
        *((name, ctypes.c_long) for name in "BLHPNK"),
        ("eps", ctypes.c_double),
        ("threads", ctypes.c_long),
    ]


def use(wanted: bool) -> None:
    """Switch this process to the kernels, or back to plain torch.

    Raises:
        CompileError: the kernels are wanted and cannot be compiled or loaded.
    """
    global _in_use
    if wanted:
        library()
    _in_use = wanted


def in_use() -> bool:
    """Whether the kernels compute with CPU tensors."""
    return _in_use


@contextmanager
def kernels_off() -> Iterator[None]:
    """Compute in plain torch within the block, as a served model does."""
    global _in_use
    before, _in_use = _in_use, False
    try:
        yield
    finally:
        _in_use = before


def computed_in(stored: torch.dtype) -> torch.dtype:
    """Return the dtype in which the kernels compute with tensors of a dtype."""
    return torch.float64 if stored == torch.float64 else torch.float32


def takes(zxbcdt: Tensor, weight: Tensor) -> bool:
    """Whether the kernels are in use and can compute with tensors like these."""
    return (
        _in_use
        and zxbcdt.device.type == "cpu"
        and zxbcdt.dtype in KINDS
        and weight.dtype == computed_in(zxbcdt.dtype)
        and not torch.compiler.is_compiling()
    )


@functools.cache
def library() -> Library:
    """Return the kernels, and compile them first where the cache folder does not have them.

    Raises:
        CompileError: there is no C++ compiler, or compiling or loading fails.
    """
    started = time.perf_counter()
    compiler = os.environ.get("CXX") or next(filter(shutil.which, COMPILERS), None)
    if compiler is None:
        raise CompileError(f"no C++ compiler found ({', '.join(COMPILERS)}; or name one in CXX)")
    path = cache_folder() / f"ssm_cpu-{_fingerprint(compiler)}.so"
    compiled = not path.is_file()
    try:
        if compiled:
            _compile(compiler, path)
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompileError(f"{path}: {error}") from error
    return Library(handle, path, compiled, time.perf_counter() - started)


def cache_folder() -> Path:
    """Return the folder of compiled kernels: ``ocp_mamba`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ocp_mamba"


def _fingerprint(compiler: str) -> str:
    """Hash of what the compiled file depends on: source, flags, compiler and processor."""
    try:
        version = subprocess.run(
            [*compiler.split(), "--version"], capture_output=True, text=True, check=False
        ).stdout
    except OSError as error:
        raise CompileError(f"the compiler {compiler} does not start: {error}") from error
    cpu = described()
    parts = [
        *(source.read_text(encoding="utf-8") for source in SOURCES),
        *FLAGS,
        compiler,
        version,
        platform.machine(),
        *(cpu.get(key, platform.processor()) for key in ("model name", "flags")),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, path: Path) -> None:
    """Compile in a temporary folder and move the file, so that no process loads a partial one."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        built = Path(folder) / path.name
        command = [*compiler.split(), *FLAGS, "-o", str(built), str(SOURCE)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CompileError(f"{compiler} took more than {COMPILE_LIMIT_S} s") from error
        if done.returncode:
            first = next((x for x in done.stderr.splitlines() if "error" in x), done.stderr.strip())
            raise CompileError(f"{compiler} ended with {done.returncode}: {first[:300]}")
        os.replace(built, path)


def mixer_core(
    zxbcdt: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    norm_weight: Tensor,
    d_state: int,
    eps: float,
) -> Tensor:
    """Everything between a mixer's two linear layers; see `model.mamba2.Mamba2Mixer.forward`.

    Args:
        zxbcdt: ``(B, L, 2 E + 2 N + H)`` of ``in_proj``, where ``E`` is the inner width.
        conv_weight: ``(E + 2 N, K)``.
        conv_bias: ``(E + 2 N,)``.
        dt_bias: ``(H,)``.
        A: ``(H,)`` negative decay rates.
        D: ``(H,)`` skip weights.
        norm_weight: ``(E,)`` of the gated RMS norm.
        d_state: ``N``.
        eps: of the norm.

    Returns:
        ``(B, L, E)`` for ``out_proj``, in the dtype of ``zxbcdt``.
    """
    return _MixerCore.apply(
        zxbcdt, conv_weight, conv_bias, dt_bias, A, D, norm_weight, d_state, eps
    )


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the RMS norm of ``x + residual``, and the sum, of rows ``(..., width)``.

    The sum is in the weight's dtype. The norm is in the dtype of the next matrix product, which
    under autocast is autocast's. A residual of None stands for zeros.
    """
    low = torch.is_autocast_enabled("cpu") and weight.dtype == torch.float32
    dtype = torch.get_autocast_dtype("cpu") if low else weight.dtype
    if x.dtype != dtype or (residual is None and x.dtype == weight.dtype):
        total = x.to(weight.dtype) if residual is None else residual + x
        return _Norm.apply(None, total, weight, eps, dtype)[0], total
    normed, total = _Norm.apply(x, residual, weight, eps, dtype)
    return normed, total


class _MixerCore(torch.autograd.Function):
    """The kernels as one differentiable operation; the backward pass computes the states again."""

    @staticmethod
    def forward(
        ctx: Any, zxbcdt: Tensor, conv: Tensor, conv_bias: Tensor, dt_bias: Tensor, A: Tensor,
        D: Tensor, norm: Tensor, d_state: int, eps: float,
    ) -> Tensor:  # fmt: skip
        x = zxbcdt.contiguous()
        weights = [w.contiguous() for w in (conv.t(), conv_bias, dt_bias, A, D, norm)]
        (B, L), E, H = x.shape[:2], len(norm), len(D)
        sizes = Sizes(B, L, H, E // H, d_state, conv.shape[1], eps)
        out = x.new_empty(B, L, E)
        y, dt, states = None, norm.new_empty(B, L, H), None
        if any(ctx.needs_input_grad):
            y = torch.empty_like(out)
            states = norm.new_empty(B, max(0, -(-L // BLOCK) - 1), H, d_state, E // H)
            ctx.save_for_backward(x, y, dt, states, *weights)
            ctx.sizes = sizes
        call("forward", x.dtype, sizes, *weights, x, out, y, dt, states)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, y, dt, states, *weights = ctx.saved_tensors
        sizes, norm = ctx.sizes, weights[-1]
        din = torch.empty_like(x)
        dnorm, dconv = torch.zeros_like(norm), norm.new_zeros(sizes.K + 1, weights[0].shape[1])
        dheads = norm.new_zeros(sizes.B, sizes.H, 3)
        dout = dout.to(x.dtype).contiguous()
        given = (*weights, x, dout, y, dt, states)
        call("backward", x.dtype, sizes, *given, din, dnorm, dconv, dheads)
        ddt_bias, dA, dD = dheads.sum(0).unbind(-1)
        return din, dconv[:-1].t(), dconv[-1], ddt_bias, dA, dD, dnorm, None, None


class _Norm(torch.autograd.Function):
    """`add_rms_norm` of ``added``, in the norm's dtype, and ``residual``; one may be None."""

    @staticmethod
    def forward(
        ctx: Any, added: Tensor | None, residual: Tensor | None, weight: Tensor, eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        given = [None if t is None else t.contiguous() for t in (added, residual)]
        like = next(t for t in given if t is not None)
        out, weight = torch.empty_like(like, dtype=dtype), weight.contiguous()
        total = None if added is None else torch.empty_like(like, dtype=weight.dtype)
        width = like.shape[-1]
        ctx.sizes = Sizes(like.numel() // width, 1, 1, width, 1, 1, eps)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(given[1] if total is None else total, weight)
        ctx.dtype = dtype
        call("norm_forward", dtype, ctx.sizes, weight, *given, total, out)
        return out, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dtotal: Tensor | None) -> tuple[Tensor | None, ...]:
        total, weight = ctx.saved_tensors
        wanted = zip(ctx.needs_input_grad[:2], (ctx.dtype, total.dtype), strict=True)
        dgiven = [torch.empty_like(total, dtype=dtype) if w else None for w, dtype in wanted]
        dweight = torch.zeros_like(weight)
        dout = torch.zeros_like(total) if dout is None else dout
        given = (dout.to(ctx.dtype).contiguous(), None if dtotal is None else dtotal.contiguous())
        call("norm_backward", ctx.dtype, ctx.sizes, weight, total, *given, *dgiven, dweight)
        return *dgiven, dweight, None, None


def call(name: str, dtype: torch.dtype, sizes: Sizes, *tensors: Tensor | None) -> None:
    """Call a kernel with the addresses of its tensors, in the order of `mixer.cpp`."""
    sizes.threads = torch.get_num_threads()
    addresses = [None if t is None else t.data_ptr() for t in tensors]
    kernel = getattr(library().handle, f"mixer_{name}")
    kernel(KINDS[dtype], ctypes.byref(sizes), (ctypes.c_void_p * len(tensors))(*addresses))
