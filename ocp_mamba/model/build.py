"""Which class a config asks for."""

from __future__ import annotations

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.conditioning import RelationLVM
from ocp_mamba.model.ensemble import EnsembleLVM
from ocp_mamba.model.lvm import OCPMambaLVM


def class_of(config: ModelConfig) -> type[OCPMambaLVM]:
    """Return the plainest class that has what a config asks for.

    That is `OCPMambaLVM` itself, unless the config has several ``members`` or a memory head
    (`EnsembleLVM`), or names relations (`RelationLVM`).
    """
    if config.relations:
        return RelationLVM
    return EnsembleLVM if config.members > 1 or config.n_memory else OCPMambaLVM


def build_model(config: ModelConfig) -> OCPMambaLVM:
    """Return a model of `class_of` a config, with freshly drawn weights."""
    return class_of(config)(config)
