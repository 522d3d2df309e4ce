"""Changed ``.pt`` files with a right digest, as somebody with this package could write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ocp_mamba.system.tensor_file import write_tensors


def rewrite(path: Path, *drop: str, to: Path | None = None, **changed: Any) -> dict[str, Any]:
    """Write a checkpoint again without some keys and with others changed; returns its content."""
    content = torch.load(path, weights_only=True) | changed
    content = {key: value for key, value in content.items() if key not in drop}
    write_tensors(to or path, content)
    return content
