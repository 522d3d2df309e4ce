"""The C library's allocator: whether freed memory is kept for later or returned to the system.

Every training step allocates and frees large arrays. By default glibc returns their pages to the
system and asks for new ones, and the system clears each of them, which takes a tenth of a step.
Other C libraries are left as they are.
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
"""Bytes: arrays up to this size come from the kept memory. Larger ones, of which a step makes few
or none, are mapped one by one and leave no holes. Older glibc accepts no larger limit."""

KEEPING = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: -1}
"""Freed memory is kept."""

DEFAULTS = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: 2 * LARGEST}
"""The values that glibc's own limits reach in a process that frees large arrays."""


def give_back_freed() -> None:
    """Return freed memory to the system, where glibc's allocator keeps it for later."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def freed_is_kept() -> Iterator[None]:
    """Within the block freed memory stays with the process; at its end it is returned."""
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
