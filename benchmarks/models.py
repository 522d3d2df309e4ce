"""The two models that the benchmarks measure, each named by what it is."""

from __future__ import annotations

from dataclasses import replace

from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig, override
from ocp_mamba.presets import preset

HEDGED = "hedged"
"""The preset with three stacks of two layers and a memory head."""

SINGLE = replace(MODEL_SIZES["small"], members=1, n_memory=0)
"""The default model: one stack of six Mamba-2 layers of width 768, without a memory head."""


def hedged_model(quick: bool = False) -> ModelConfig:
    """Return the model of the preset ``hedged``; quick takes one layer a stack."""
    config = override(SINGLE, **preset(HEDGED).model)
    return replace(config, n_layers=config.members) if quick else config


def hedged_training(config: TrainConfig) -> TrainConfig:
    """Return the training settings of the preset ``hedged``, based on ``config``."""
    return override(config, **preset(HEDGED).train)
