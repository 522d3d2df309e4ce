"""The models: `OCPMambaLVM` and its subclasses, their checkpoint file and their inference cache.

This room knows shapes and weights; it knows no data, no training and no tracker.
"""

from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_model
from ocp_mamba.model.lvm import OCPMambaLVM

__all__ = ["NextVectorModel", "OCPMambaLVM", "build_model", "load_model"]
