"""The ``.pt`` file: plain values and tensors, of one kind of model, with a format version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

FORMAT_VERSION = 1
"""Version of the ``.pt`` layout that `write_checkpoint` writes."""

KIND = "OCPMambaLVM"
"""What a ``.pt`` says that it holds; a file that says nothing holds this."""


class CheckpointError(ValueError):
    """A ``.pt`` file cannot be read, or not as what was wanted."""


def write_checkpoint(path: Path | str, kind: str, content: dict[str, Any]) -> None:
    """Write a ``.pt`` of a kind, with its format version; an older file is replaced whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format_version": FORMAT_VERSION, "kind": kind} | content
    partial = path.with_name(path.name + ".partial")
    torch.save(content, partial)
    partial.replace(path)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a ``.pt`` file without unpickling anything but tensors and plain values.

    Returns:
        Its content, with ``kind``.

    Raises:
        CheckpointError: the file is missing, no checkpoint of ours, or of a newer format.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path}: there is no such file") from error
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path}: not readable with weights_only=True "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"checkpoint {path}: not an ocp_mamba checkpoint (no format_version)")
    version = content["format_version"]
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"checkpoint {path}: format {version}, this version reads {FORMAT_VERSION}"
        )
    content = {"kind": KIND} | content
    shape = "model_config" if content["kind"] == KIND else "settings"
    missing = sorted({shape, "state_dict", "dataset_fingerprint", "encoder"} - set(content))
    if missing:
        raise CheckpointError(f"checkpoint {path}: keys {missing} are missing")
    return content
