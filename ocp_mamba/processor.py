"""What a library does not find out about the processor by itself."""

from __future__ import annotations

import os
from pathlib import Path

CORE_TYPE = "OPENBLAS_CORETYPE"
"""The environment variable by which OpenBLAS can be told whose kernels to take."""

NEEDED = {"avx512f", "avx512dq", "avx512bw", "avx512vl", "avx512cd"}
"""What OpenBLAS's SkylakeX kernels are made of."""


def widen_openblas(cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Let the OpenBLAS that FAISS searches with use AVX-512 on AMD's processors.

    It takes those that it does not know for far older ones, and an exact search takes four times as
    long (docs/lab-notes.md, 2026-11-24). For the process of a command, before faiss is imported;
    what the environment says already stays.
    """
    if CORE_TYPE in os.environ or not cpuinfo.is_file():
        return
    lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
    found = {key.strip(): value.split() for key, value in lines.items()}
    if found.get("vendor_id") == ["AuthenticAMD"] and set(found.get("flags", ())) >= NEEDED:
        os.environ[CORE_TYPE] = "SkylakeX"
