"""Honest experiment tracking for next-vector prediction with a Mamba-2 latent vector model.

The public names are in ``__all__``; each is imported when it is first used, so that
``import ocp_mamba`` loads nothing heavy. docs/api.md shows them at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ocp_mamba.config import __version__

if TYPE_CHECKING:
    from ocp_mamba.api import evaluate, train
    from ocp_mamba.data.load import load_dataset
    from ocp_mamba.model.checkpoint import load_model
    from ocp_mamba.model.lvm import OCPMambaLVM

__all__ = ["OCPMambaLVM", "__version__", "evaluate", "load_dataset", "load_model", "train"]

_HOMES = {
    "OCPMambaLVM": "ocp_mamba.model.lvm",
    "evaluate": "ocp_mamba.api",
    "load_dataset": "ocp_mamba.data.load",
    "load_model": "ocp_mamba.model.checkpoint",
    "train": "ocp_mamba.api",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_HOMES[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
