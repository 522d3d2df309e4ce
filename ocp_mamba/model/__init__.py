"""The models: `OCPMambaLVM`, what can stand around it, its checkpoint and its inference cache.

A room that knows shapes and weights, and no data, no training and no tracker.
"""

from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_model
from ocp_mamba.model.lvm import OCPMambaLVM

__all__ = ["NextVectorModel", "OCPMambaLVM", "build_model", "load_model"]
