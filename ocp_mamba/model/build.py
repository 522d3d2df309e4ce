"""Build the model class that a config needs."""

from __future__ import annotations

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.conditioning import RelationLVM
from ocp_mamba.model.ensemble import EnsembleLVM
from ocp_mamba.model.lvm import OCPMambaLVM


def class_of(config: ModelConfig) -> type[OCPMambaLVM]:
    """Return the simplest class that supports a config.

    It is `RelationLVM` for a config with relations, `EnsembleLVM` for one with several
    ``members``, a memory head or a context lookup, else `OCPMambaLVM`.
    """
    if config.relations:
        return RelationLVM
    more = config.members > 1 or config.n_memory or config.n_lookup
    return EnsembleLVM if more else OCPMambaLVM


def build_model(config: ModelConfig) -> OCPMambaLVM:
    """Return a model of the config's class, with freshly drawn weights."""
    return class_of(config)(config)
