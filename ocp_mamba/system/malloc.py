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

LARGEST = 2**25
"""Bytes: arrays up to here come from what is kept. Larger ones, of which a step makes few or none,
come and go by themselves and leave no holes. Older glibc takes no larger limit."""

KEEPING = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: -1}
"""Nothing is given back by itself."""

DEFAULTS = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: 2 * LARGEST}
"""What glibc's own limits grow to in a process that frees large arrays."""


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
