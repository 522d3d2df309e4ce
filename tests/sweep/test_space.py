from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig
from ocp_mamba.errors import ConfigError, SpaceError
from ocp_mamba.sweep.space import load_space, parse_space


def test_the_default_space_fits_every_model_size() -> None:
    space = load_space()
    assert "train.lr" in space.distributions
    for model in MODEL_SIZES.values():
        space.check(model, TrainConfig())


def test_values_arrive_in_the_configs() -> None:
    space = parse_space(
        "train:\n  lr: {type: float, low: 1e-4, high: 0.01, log: true}\n"
        "  precision: {type: categorical, choices: [float32, bf16]}\n"
        "model:\n  n_layers: {type: int, low: 2, high: 8, step: 2}\n",
        "s",
    )
    lr, layers = space.distributions["train.lr"], space.distributions["model.n_layers"]
    assert (lr.low, lr.high, lr.log) == (1e-4, 0.01, True)
    assert (layers.low, layers.high, layers.step) == (2, 8, 2)
    model, train = space.configs(
        {"train.lr": 0.003, "model.n_layers": 4}, ModelConfig(d_state=32), TrainConfig(seed=7)
    )
    assert (model.n_layers, model.d_state) == (4, 32)
    assert (train.lr, train.seed) == (0.003, 7)


FAULTS = {
    "": "wanted the tables model and train",
    "[1, 2]": "wanted the tables model and train",
    "train: {lr: [}": "not YAML",
    "optimizer: {lr: 1}": "table 'optimizer' is unknown, wanted model or train",
    "train: 3": "train: found 3",
    "train: {}": "nothing to search",
    "train: {rate: {type: float, low: 1, high: 2}}": "train.rate is no setting of TrainConfig",
    "train: {lr: 0.1}": r"train.lr: found 0.1, wanted {type",
    "train: {lr: {type: real, low: 1, high: 2}}": "wanted {type: float|int|categorical",
    "train: {lr: {type: float, low: 1}}": "found the keys ['low'], a float wants ['high', 'low']",
    "train: {lr: {type: float, low: 1, high: 2, lgo: true}}": "'lgo'",
    "train: {lr: {type: float, low: a, high: 2}}": "low: found 'a', wanted float",
    "train: {lr: {type: float, low: .nan, high: 2}}": "low: found nan, wanted float",
    "train: {lr: {type: float, low: 3, high: 2}}": "train.lr: found {'high': 2, 'low': 3",
    "train: {lr: {type: float, low: 0, high: 2, log: true}}": "train.lr: found",
    "train: {lr: {type: float, low: 1, high: 2, log: yes please}}": "log: found 'yes please'",
    "train: {batch_size: {type: float, low: 1, high: 2}}": "but the setting is int",
    "train: {batch_size: {type: int, low: 1.5, high: 2}}": "low: found 1.5, wanted int",
    "train: {precision: {type: int, low: 1, high: 2}}": "but the setting is str",
    "train: {batch_size: {type: categorical, choices: []}}": "choices: found []",
    "train: {batch_size: {type: categorical, choices: [8, 8]}}": "wanted each value once",
    "train: {batch_size: {type: categorical, choices: [8, x]}}": "found 'x', wanted int",
    "train: {batch_size: {type: categorical, choices: [true]}}": "found True, wanted int",
    "train: {lr: {type: [float], low: 1, high: 2}}": "train.lr: found {",
    "train: {lr: {type: float, low: 1, high: " + "9" * 400 + "}}": "high: found 999",
    "train: {lr: {type: float, low: 0, high: 1, step: 1.0e-320}}": "train.lr: found",
    "train: {3: {type: float, low: 1, high: 2}}": "train.3 is no setting of TrainConfig",
    "train: {? [a] : 1}": "not YAML",
    "train: &a {lr: *a}": "line 1: an alias found, which is not read",
    "train: {lr: !!python/object/apply:os.getcwd []}": "not YAML",
    "train: {lr: !!int ''}": "not YAML",
    "train: {lr: !!timestamp x}": "not YAML",
    "train: " + "[" * 2000: "not YAML that can be read: it is nested too deeply",
    "train: {lr: {type: int, low: 1, high: " + "\n" + "9" * 4000 + "}}": "wanted",
    "train: {lr: {type: int, low: 1, high: 0x" + "F" * 3800 + "}}": "wanted",
    "# a\n" * 20_000: "longer than 65,536 bytes",
    "train: {lr: " + "9" * 5000 + "}": "line 1: longer than 4,096 characters",
}


@pytest.mark.parametrize("text", FAULTS, ids=range(len(FAULTS)))
def test_a_fault_is_named_with_file_key_found_and_wanted(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(SpaceError) as error:
        load_space(path)
    assert FAULTS[text] in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"none\.yaml"):
        load_space(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {lr: {type: float, low: 0, high: 1}}", "train.lr: 0.0: lr must be positive"),
        ("model: {d_model: {type: int, low: 64, high: 100}}", "model.d_model: 100"),
        ("train: {precision: {type: categorical, choices: [fp8]}}", "'fp8'"),
    ],
)
def test_bounds_that_no_config_takes_are_refused_before_a_trial(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_space(text, "mine.yaml").check(ModelConfig(), TrainConfig())
    assert message in str(error.value)
    assert str(error.value).startswith("mine.yaml: ")


def test_settings_that_go_only_together_are_searched_together() -> None:
    train = TrainConfig(infonce_weight=0.0)
    text = (
        "train:\n  hard_negatives: {type: categorical, choices: [0, 16]}\n"
        "  infonce_weight: {type: float, low: 0.0, high: 0.5}\n"
    )
    parse_space(text, "s").check(ModelConfig(), train)
    with pytest.raises(ConfigError, match=r"train\.hard_negatives: 16: .* infonce_weight is 0"):
        parse_space(text.split("  infonce")[0], "s").check(ModelConfig(), train)


@given(
    low=st.floats(1e-6, 1.0, allow_subnormal=False),
    factor=st.floats(1.0, 1e3),
    log=st.booleans(),
)
def test_what_is_written_is_what_is_searched(low: float, factor: float, log: bool) -> None:
    text = yaml.safe_dump(
        {"train": {"lr": {"type": "float", "low": low, "high": low * factor, "log": log}}}
    )
    found = parse_space(text, "s").distributions["train.lr"]
    assert (found.low, found.high, found.log) == (low, low * factor, log)
