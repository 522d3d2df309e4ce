"""The search space of a sweep: a YAML file of settings of the model and of its training."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from ocp_mamba.config import LARGEST_FLOAT, ModelConfig, TrainConfig, override
from ocp_mamba.errors import ConfigError, SpaceError, shown
from ocp_mamba.system.parsing import parse, read_settings

TABLES = {"model": ModelConfig, "train": TrainConfig}
DEFAULT_SPACE = Path(__file__).with_name("space.yaml")
KEYS: Mapping[str, tuple[set[str], set[str]]] = {
    "float": ({"low", "high"}, {"log", "step"}),
    "int": ({"low", "high"}, {"log", "step"}),
    "categorical": ({"choices"}, set()),
}
"""For each type, the keys that it needs and the keys that it may have."""


@dataclass(frozen=True)
class Space:
    """The settings that are searched, such as ``train.lr``, and Optuna's distribution of each.

    ``text`` is the file's content, which is logged.
    """

    distributions: Mapping[str, BaseDistribution]
    name: str
    text: str

    def configs(
        self, params: Mapping[str, Any], model: ModelConfig, train: TrainConfig
    ) -> tuple[ModelConfig, TrainConfig]:
        """Return the two configs with a trial's values in them.

        Raises:
            ConfigError: the values contradict each other.
        """
        chosen: dict[str, dict[str, Any]] = {"model": {}, "train": {}}
        for name, value in params.items():
            table, field = name.split(".")
            chosen[table][field] = value
        return override(model, **chosen["model"]), override(train, **chosen["train"])

    def allows(self, name: str, value: Any) -> bool:
        """Whether a setting is searched and a value is one that the search can draw."""
        distribution = self.distributions.get(name)
        if isinstance(distribution, CategoricalDistribution):
            return value in distribution.choices
        if isinstance(distribution, FloatDistribution | IntDistribution):
            return isinstance(value, int | float) and distribution.low <= value <= distribution.high
        return False

    def check(self, model: ModelConfig, train: TrainConfig) -> None:
        """Refuse bounds and choices that the configs refuse, before any trial is run.

        A value that is valid only with other searched values is accepted, such as hard negatives
        with an InfoNCE weight.

        Raises:
            SpaceError: names the file, the setting and the value.
        """
        edges = {name: _edges(d) for name, d in self.distributions.items()}
        others = [{}, *({n: e[end] for n, e in edges.items()} for end in (0, -1))]
        for name, values in edges.items():
            for value in values:
                refused = [self._refusal({**rest, name: value}, model, train) for rest in others]
                if all(refused):
                    raise SpaceError(f"{self.name}: {name}: {shown(value)}: {refused[0]}")

    def _refusal(
        self, params: Mapping[str, Any], model: ModelConfig, train: TrainConfig
    ) -> str | None:
        try:
            self.configs(params, model, train)
        except ConfigError as error:
            return str(error)
        return None


def load_space(path: Path = DEFAULT_SPACE) -> Space:
    """Read a search space.

    Raises:
        SpaceError: the file cannot be read or is not a search space; names the key, what was found
            and what is wanted.
    """
    text = read_settings(path, SpaceError, "search space")
    return parse_space(text, f"search space {path}")


class _Loader(yaml.SafeLoader):
    """YAML without aliases, by which a text of 1 KB can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.YAMLError(f"line {mark.line + 1}: an alias found, which is not read")
        return super().compose_node(parent, index)


def _parse_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def parse_space(text: str, name: str) -> Space:
    """Parse a search space; ``name`` is what errors call it.

    Raises:
        SpaceError: as `load_space`.
    """
    content = parse(_parse_yaml, text, "YAML", SpaceError, name)
    if not isinstance(content, dict) or not content:
        raise SpaceError(f"{name}: found {shown(content)}, wanted the tables model and train")
    found: dict[str, BaseDistribution] = {}
    for table, entries in content.items():
        if table not in TABLES:
            raise SpaceError(f"{name}: table {shown(table)} is unknown, wanted model or train")
        if not isinstance(entries, dict):
            raise SpaceError(
                f"{name}: {table}: found {shown(entries)}, wanted settings and their types"
            )
        for field, entry in entries.items():
            found[f"{table}.{field}"] = _distribution(table, field, entry, name)
    if not found:
        raise SpaceError(f"{name}: nothing to search, wanted at least one setting")
    return Space(found, name, text)


def _distribution(table: str, field: str, entry: Any, name: str) -> BaseDistribution:
    where = f"{name}: {table}.{field if isinstance(field, str) else shown(field)}"
    types = {f.name: str(f.type) for f in fields(TABLES[table])}
    if field not in types:
        raise SpaceError(
            f"{where} is no setting of {TABLES[table].__name__}, wanted one of {sorted(types)}"
        )
    kind = entry.get("type") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in KEYS:
        raise SpaceError(
            f"{where}: found {shown(entry)}, wanted {{type: float|int|categorical, ...}}"
        )
    needed, allowed = KEYS[kind]
    given = set(entry) - {"type"}
    if not needed <= given <= needed | allowed:
        raise SpaceError(
            f"{where}: found the keys {shown(sorted(map(str, given)))}, a {kind} wants "
            f"{sorted(needed)}" + (f" and may have {sorted(allowed)}" if allowed else "")
        )
    if kind == "categorical":
        return CategoricalDistribution(_choices(entry["choices"], types[field], where))
    if types[field] not in (("int", "float") if kind == "int" else ("float",)):
        raise SpaceError(f"{where}: found type {kind}, but the setting is {types[field]}")
    return _range(entry, kind, where)


def _choices(values: Any, wanted: str, where: str) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise SpaceError(f"{where}: choices: found {shown(values)}, wanted a list of {wanted}")
    chosen = [_value(v, wanted, f"{where}: choices") for v in values]
    if len(set(chosen)) < len(chosen):
        raise SpaceError(f"{where}: choices: found {shown(values)}, wanted each value once")
    return chosen


def _range(entry: Mapping[str, Any], kind: str, where: str) -> BaseDistribution:
    """An Optuna distribution, which itself refuses low > high, a log below 0, log with a step."""
    log = entry.get("log", False)
    if not isinstance(log, bool):
        raise SpaceError(f"{where}: log: found {shown(log)}, wanted true or false")
    numbers = {k: _value(entry[k], kind, f"{where}: {k}") for k in ("low", "high", "step")
               if k in entry}  # fmt: skip
    make = FloatDistribution if kind == "float" else IntDistribution
    try:
        return make(log=log, **numbers)
    except (ValueError, ArithmeticError) as error:
        raise SpaceError(f"{where}: found {shown(dict(entry))}: {error}") from error


def _value(value: Any, wanted: str, where: str) -> Any:
    """A scalar of the wanted type. YAML 1.1 reads ``1e-4``, without a point, as text."""
    if wanted == "float" and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    is_bool = isinstance(value, bool)
    fits = {
        "int": isinstance(value, int) and not is_bool and abs(value) < LARGEST_FLOAT,
        "float": isinstance(value, int | float) and not is_bool and abs(value) < LARGEST_FLOAT,
        "str": isinstance(value, str),
        "bool": is_bool,
    }
    if not fits.get(wanted, False):
        raise SpaceError(f"{where}: found {shown(value)}, wanted {wanted}")
    return float(value) if wanted == "float" else value


def _edges(distribution: BaseDistribution) -> tuple[Any, ...]:
    if isinstance(distribution, CategoricalDistribution):
        return tuple(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return distribution.low, distribution.high
