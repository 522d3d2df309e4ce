"""The C library's allocator: whether memory that was freed is kept for later or given back.

Large arrays come and go with every training step. Left alone, glibc gives their pages back to the
system and asks for them again, and the system clears each one: a tenth of a step. Other C libraries
are left as they are.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Options of ``mallopt``, as <malloc.h> numbers them."""

KEEPING = {TRIM_THRESHOLD: -1, MMAP_THRESHOLD: 2**30}
"""Nothing is given back by itself, and arrays of up to so many bytes come from what is kept."""

DEFAULTS = {TRIM_THRESHOLD: 64 * 2**20, MMAP_THRESHOLD: 32 * 2**20}
"""Bytes: what glibc's own limits grow to in a process that frees large arrays."""


def give_back_freed() -> None:
    """Give memory that was freed back to the system, where glibc's allocator keeps it for later."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Within the block memory that was freed stays with the process; after it, it is given back."""
    _limit(KEEPING)
    try:
        yield
    finally:
        _limit(DEFAULTS)
        give_back_freed()


def _limit(options: dict[int, int]) -> None:
    libc = _glibc()
    if libc is not None:
        for option, size in options.items():
            libc.mallopt(option, size)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc, else None."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
