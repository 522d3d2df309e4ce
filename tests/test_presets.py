"""Presets: what they change, and that `train --preset` and the flags around it do."""

import dataclasses

import click
import pytest

from ocp_mamba.cli.main import main
from ocp_mamba.cli.train import _given, _train_job, train
from ocp_mamba.config import MODEL_SIZES, TrainConfig, override
from ocp_mamba.errors import ConfigError
from ocp_mamba.model.build import class_of
from ocp_mamba.model.ensemble import EnsembleLVM
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.presets import BASE, CODES, PRESETS, preset


def job(*words):
    context = train.make_context("train", ["--data", "ocp_training_9k.npz", *words])
    return _train_job(context.params, *_given(context.params))


@pytest.mark.parametrize("name", PRESETS)
def test_each_changes_settings_that_exist_and_only_base_changes_none(name):
    found = PRESETS[name]
    small = MODEL_SIZES["small"]
    model = override(small, **found.model)
    settings = override(TrainConfig(), **found.train)
    changed = (model, settings) != (small, TrainConfig()) or found.relations
    assert changed == (name != BASE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.summary = "x"


@pytest.mark.parametrize("name", PRESETS)
def test_train_takes_it_and_help_says_it(name):
    trained = job("--preset", name)
    assert trained.model == override(MODEL_SIZES["small"], **PRESETS[name].model)
    assert trained.train == override(TrainConfig(), **PRESETS[name].train)
    assert trained.relations == PRESETS[name].relations
    text = train.get_help(click.Context(train, parent=click.Context(main)))
    assert f"    {name:<14} {PRESETS[name].summary}" in text


@pytest.mark.parametrize("code", CODES)
def test_a_code_names_the_preset_too(code):
    assert preset(code) is PRESETS[CODES[code]]
    assert job("--preset", code).model == job("--preset", CODES[code]).model


def test_the_default_is_the_specification():
    """Path 1A: six Mamba-2 layers one after the other, and nothing around them."""
    model = job().model
    assert (model.d_model, model.n_layers, model.d_state) == (768, 6, 16)
    assert (model.d_conv, model.expand, model.members, model.n_memory) == (4, 2, 1, 0)
    assert model.depths == (6,)
    assert not model.relations
    assert class_of(model) is OCPMambaLVM
    assert class_of(job("--preset", "hedged").model) is EnsembleLVM


def test_a_config_file_wins_over_the_preset_and_a_flag_over_both(tmp_path):
    file = tmp_path / "own.toml"
    file.write_text("[model]\nn_layers = 9\n[train]\ncurriculum = 0.25\n")
    assert job("--preset", "1D", "--config", file).model.n_layers == 9
    assert job("--preset", "1D", "--config", file, "--n-layers", "4").model.n_layers == 4
    assert job("--preset", "1C", "--config", file).train.curriculum == 0.25
    assert job("--preset", "1B", "--tmd", "auto").model.d_tmd == 16
    assert job("--preset", "1B", "--tmd", "false").model.d_tmd == 0
    assert not job("--preset", "relations", "--relations", "false").relations


def test_an_unknown_preset_and_negatives_without_their_loss_are_refused():
    with pytest.raises(ConfigError, match="preset '9Z' is unknown; choose one of base, tmd"):
        preset("9Z")
    with pytest.raises(ConfigError, match="hard_negatives 4 belong to InfoNCE"):
        job("--hard-negatives", "4", "--infonce-weight", "0")
    with pytest.raises(ConfigError, match="curriculum must be in"):
        TrainConfig(curriculum=1.0)
