"""The planned variants of the base, as frozen overrides of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ocp_mamba.config import D_TMD, MAX_MEMORY
from ocp_mamba.errors import ConfigError


@dataclass(frozen=True)
class Preset:
    """What a variant changes of the base.

    Attributes:
        code: of a planned variant, as `1B`; empty for the others. Both name the preset.
        summary: one line for a person.
        model: settings of `ModelConfig`.
        train: settings of `TrainConfig`.
        relations: whether the model takes the dataset's relations.
    """

    code: str
    summary: str
    model: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    relations: bool = False


HEDGED_TRAINING: Mapping[str, Any] = MappingProxyType(
    {
        "max_epochs": 6,
        "infonce_weight": 0.05,
        "infonce_candidates": "train",
        "mixup": 1.0,
        "mixup_share": 0.7,
        "min_context": 1,
    }
)

BASE = "base"

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        BASE: Preset("", "the defaults: one stack of Mamba-2 layers (path 1A)"),
        "tmd": Preset("1B", "conditioned on each chain's TMD vector", model={"d_tmd": D_TMD}),
        "curriculum": Preset(
            "1C",
            "short chains first, all chains from the middle of the training on",
            train={"curriculum": 0.5},
        ),
        "deep": Preset("1D", "12 layers", model={"n_layers": 12}),
        "hard-negatives": Preset(
            "1E",
            "0.1 InfoNCE with 8 hard negatives a target out of the bank",
            train={"infonce_weight": 0.1, "infonce_candidates": "batch", "hard_negatives": 8},
        ),
        "hedged": Preset(
            "",
            "3 stacks of layers that are averaged, a memory head, 0.05 InfoNCE over train targets",
            model={"members": 3, "n_memory": MAX_MEMORY},
            train=HEDGED_TRAINING,
        ),
        "memory": Preset(
            "1S",
            "one stack with a memory head, trained as hedged is",
            model={"n_memory": MAX_MEMORY},
            train=HEDGED_TRAINING,
        ),
        "lookup": Preset(
            "",
            "one stack with a lookup of what followed similar contexts in train",
            model={"n_lookup": MAX_MEMORY},
        ),
        "hedged-lookup": Preset(
            "",
            "hedged with the same lookup",
            model={"members": 3, "n_memory": MAX_MEMORY, "n_lookup": MAX_MEMORY},
            train=HEDGED_TRAINING,
        ),
        "plain": Preset(
            "1P",
            "no mixed chains, contexts of 2 concepts and more, no InfoNCE",
            train={"mixup": 0.0, "min_context": 2, "infonce_weight": 0.0},
        ),
        "no-mixup": Preset("", "no mixed chains", train={"mixup": 0.0}),
        "no-first-steps": Preset(
            "",
            "contexts of 2 concepts and more, as in evaluation",
            train={"min_context": 2},
        ),
        "softmax": Preset(
            "",
            "0.05 InfoNCE over all train targets beside the cosine loss",
            train={"infonce_weight": 0.05, "infonce_candidates": "train"},
        ),
        "relations": Preset(
            "", "conditioned on the relation by which each concept follows", relations=True
        ),
    }
)

CODES: Mapping[str, str] = MappingProxyType({p.code: n for n, p in PRESETS.items() if p.code})
"""The presets' names by the codes of the planned variants."""

SCALING = "scaling"
"""Not a preset: the base on all concepts against the base on half of them."""

ABLATIONS = ("memory", "lookup", "hedged-lookup", "plain", "no-mixup", "no-first-steps", "softmax")
"""Presets that change one thing of the base, or of hedged, to measure what it is worth."""

VARIANTS = (*(name for name in PRESETS if name not in (BASE, *ABLATIONS)), SCALING)
"""The variants that are compared with the base unless some are named."""


def preset(name: str) -> Preset:
    """Return a preset by its name or its code.

    Raises:
        ConfigError: there is none of that name.
    """
    name = CODES.get(name, name)
    if name not in PRESETS:
        raise ConfigError(
            f"preset {name!r} is unknown; choose one of {', '.join([*PRESETS, *CODES])}"
        )
    return PRESETS[name]


def listing() -> str:
    """Return a line for each preset: its name and what it changes."""
    return "\n".join(
        f"{name:<14} {p.summary}" + (f" ({p.code})" if p.code else "")
        for name, p in PRESETS.items()
    )
