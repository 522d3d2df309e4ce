"""The settings that a training was asked for with: what must be the same to go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ocp_mamba.config import ModelConfig, TrainConfig

MAY_CHANGE = ("threads", "compile")
"""Settings that a resumed training may change."""


def asked_for(
    model: ModelConfig,
    train: TrainConfig,
    *,
    relations: bool,
    experiment: str,
    limits: Mapping[str, int],
) -> dict[str, Any]:
    """Return the settings of a training that another one must have to go on with it.

    Args:
        model: shape, without the dataset's relations.
        train: settings of the training.
        relations: whether the model takes the dataset's relations.
        experiment: of the tracked run.
        limits: up to what size data are evaluated whole: other ones give other metrics.
    """
    return {
        "model": asdict(model),
        "train": asdict(train),
        "relations": relations,
        "experiment": experiment,
        "eval": dict(limits),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in what two sets of settings differ, apart from `MAY_CHANGE`; empty where they do not.

    Args:
        then: settings by name; a value may be settings again.
        now: the same names.
    """
    before, after = _flat(then), _flat(now)
    changed = [
        f"{name} was {_shown(before.get(name))}, now {_shown(after.get(name))}"
        for name in sorted(set(before) | set(after))
        if before.get(name) != after.get(name) and name.split(".")[-1] not in MAY_CHANGE
    ]
    return "; ".join(changed)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = list(value) if isinstance(value, tuple) else value
    return flat


def _shown(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
