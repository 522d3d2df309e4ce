"""The processor as Linux describes it, and a hint for a library that does not recognize it."""

from __future__ import annotations

import os
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")

CORE_TYPE = "OPENBLAS_CORETYPE"
"""The environment variable that tells OpenBLAS for which processor's kernels to choose."""

NEEDED = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
"""The instruction sets that OpenBLAS's SkylakeX kernels use."""


def described(path: Path = CPUINFO) -> dict[str, str]:
    """Return the fields of ``/proc/cpuinfo`` for the last core; no fields where there is none."""
    if not path.is_file():
        return {}
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def widen_openblas(path: Path = CPUINFO) -> None:
    """Let the OpenBLAS that FAISS searches with use AVX-512 on AMD's processors.

    OpenBLAS treats processors that it does not know as far older ones, and an exact search then
    takes four times as long (docs/lab-notes.md, 2026-11-24). Call this before faiss is imported; a
    value that the environment has already stays.
    """
    if CORE_TYPE in os.environ:
        return
    found = described(path)
    if found.get("vendor_id") == "AuthenticAMD" and set(found.get("flags", "").split()) >= NEEDED:
        os.environ[CORE_TYPE] = "SkylakeX"
