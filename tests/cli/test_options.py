"""The settings of a command: what a TOML file may hold, and how its faults are named."""

from __future__ import annotations

import pytest

from ocp_mamba.cli.options import merged_settings, read_config_file
from ocp_mamba.errors import ConfigError


def test_config_file_is_read_and_its_faults_are_named(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[model]\nn_layers = 3\n[train]\nlr = 0.01\n")
    assert read_config_file(path) == {"model": {"n_layers": 3}, "train": {"lr": 0.01}}
    path.write_text("[optimizer]\nlr = 0.01\n")
    with pytest.raises(ConfigError, match=r"run\.toml: unknown tables \['optimizer'\]"):
        read_config_file(path)
    path.write_text("lr = = 1")
    with pytest.raises(ConfigError, match=r"run\.toml"):
        read_config_file(path)
    with pytest.raises(ConfigError, match=r"absent\.toml"):
        read_config_file(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = 3", "model must be a table, got 3"),
        ("[model]\nlayers = 3", r"\[model\] has no setting 'layers'; it has .*'n_layers'"),
        ("[model]\nn_layers = '3'", r"\[model\] n_layers must be a whole number"),
        ("[train]\nlr = inf", r"\[train\] lr must be a finite number, got inf"),
        ("[train]\nlr = 1979-05-27", r"\[train\] lr must be a finite number"),
        ("[train]\nseed = " + "9" * 3000, r"\[train\] seed must be a whole number"),
        ("[train]\nseed = 0x" + "F" * 4000, "seed must be .* got a very large int"),
        ("[train]\nlr = " + "[" * 3000, "nested too deeply"),
        ("x = 1\n" * 20_000, "longer than 65,536 bytes"),
        ("[train]\nlr = " + "1" * 5000, "line 2: longer than 4,096 characters"),
        ('[model]\nrelations = ["\\ud800"]', "not TOML"),
    ],
)
def test_a_hostile_config_file_is_refused_with_file_and_setting(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)config file .*run\.toml.*{message}"):
        read_config_file(path)


def test_a_config_file_in_another_encoding_is_refused(tmp_path):
    path = tmp_path / "run.toml"
    path.write_bytes("[model] # größe".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"run\.toml: not UTF-8 text \(byte 0xf6 at byte 12\)"):
        read_config_file(path)


def test_a_value_out_of_range_names_the_config_file(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text("[train]\nlr = -1.0\n")
    flags = {"config_file": path, "model_size": "tiny", "early_stopping": None}
    with pytest.raises(ConfigError, match=r"config file .*run\.toml: lr must be positive"):
        merged_settings(flags)
