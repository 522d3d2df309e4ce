"""Fixtures of the sweep's tests: a small dataset with a search space, and a journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from sweeps import Files


@pytest.fixture
def files(store: str, tmp_path: Path) -> Files:
    return Files.make(tmp_path)


@pytest.fixture
def journal(files: Files) -> str:
    return str(files.folder / "sweeps.journal")
