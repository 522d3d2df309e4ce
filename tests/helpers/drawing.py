"""Plots that are drawn, and plots that are one pixel: half of a tiny training is drawing."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)
"""A PNG."""
really_savefig = Figure.savefig


def _write_pixel(figure: Figure, target: Any, **settings: Any) -> None:
    if hasattr(target, "write"):
        target.write(PIXEL)
    else:
        Path(target).write_bytes(PIXEL)


@contextmanager
def one_pixel() -> Iterator[None]:
    """Within the block plots are made, and written as one pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", _write_pixel)
        yield


@contextmanager
def drawing() -> Iterator[None]:
    """Within the block plots are drawn, whatever stands around it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", really_savefig)
        yield
