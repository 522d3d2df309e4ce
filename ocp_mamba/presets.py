"""The planned variants of the base, as frozen overrides of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ocp_mamba.config import D_TMD
from ocp_mamba.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """What a variant changes of the base.

    Attributes:
        title: a word or two, for a table's row.
        summary: one line for a person.
        model: settings of `ModelConfig`.
        train: settings of `TrainConfig`.
        relations: the model knows the dataset's relations.
    """

    title: str
    summary: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    relations: bool = False


BASE = "base"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        BASE: Preset("", "the defaults"),
        "1B": Preset("TMD", "conditioned on each chain's TMD vector", model={"d_tmd": D_TMD}),
        "1C": Preset(
            "curriculum",
            "curriculum: short chains first, all from the middle on",
            train={"curriculum": 0.5},
        ),
        "1D": Preset("deeper", "12 layers", model={"n_layers": 12}),
        "1E": Preset(
            "hard negatives",
            "contrastive: 0.1 InfoNCE with 8 hard negatives a target out of the bank",
            train={"infonce_weight": 0.1, "infonce_candidates": "batch", "hard_negatives": 8},
        ),
        "1S": Preset("one stack", "one stack of all the layers", model={"members": 1}),
        "1P": Preset(
            "plain",
            "nothing remembered, no chains mixed, contexts of 2 concepts and more",
            model={"n_memory": 0},
            train={"mixup": 0.0, "min_context": 2},
        ),
        "relations": Preset(
            "", "conditioned on the relation by which each concept follows", relations=True
        ),
    }
)


SCALING = "scaling"
"""Not a preset: the base on all concepts against the base on half of them."""

VARIANTS = (*(name for name in PRESETS if name != BASE), SCALING)
"""What is evaluated against the base."""


def preset(name: str) -> Preset:
    """Return a preset by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def listing() -> str:
    """Return a line for each preset: its name and what it changes."""
    return "\n".join(f"{name:<9} {p.summary}" for name, p in PRESETS.items())
