"""What the system says of the processor, and what a library does not find out by itself."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

CORE_TYPE = "OPENBLAS_CORETYPE"
"""The environment variable by which OpenBLAS can be told whose kernels to take."""

NEEDED = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
"""What OpenBLAS's SkylakeX kernels are made of."""


def described(path: Path = CPUINFO) -> dict[str, str]:
    """Return what Linux says of the processor, by its own names; nothing elsewhere."""
    if not path.is_file():
        return {}
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def widen_openblas(path: Path = CPUINFO) -> None:
    """Let the OpenBLAS that FAISS searches with use AVX-512 on AMD's processors.

    It takes those that it does not know for far older ones, and an exact search takes four times as
    long (docs/lab-notes.md, 2026-11-24). For the process of a command, before faiss is imported;
    what the environment says already stays.
    """
    if CORE_TYPE in os.environ:
        return
    found = described(path)
    if found.get("vendor_id") == "AuthenticAMD" and set(found.get("flags", "").split()) >= NEEDED:
        os.environ[CORE_TYPE] = "SkylakeX"
