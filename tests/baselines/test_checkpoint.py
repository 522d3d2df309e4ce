"""The file of a trained baseline: what was saved is what is loaded, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from checkpoint_files import rewrite

from ocp_mamba.baselines.checkpoint import load_predictor, save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import CheckpointError
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM

SHAPE = ModelConfig(d_model=32, n_layers=1, headdim=16, dropout=0.1)
ENCODER = {"name": "random", "weight_hash": "0" * 64}


def saved(name, path):
    torch.manual_seed(0)
    model = TRAINED_BASELINES[name](SHAPE, 60_000)
    save_baseline(
        path, model, dataset_fingerprint="f" * 64, encoder=ENCODER, loop={"best_epoch": 3}
    )
    return model.eval()


@pytest.mark.parametrize("name", TRAINED_BASELINES)
def test_a_baseline_comes_back_as_it_was(name, tmp_path):
    model = saved(name, tmp_path / "b.pt")
    found = load_predictor(tmp_path / "b.pt")
    assert (found.kind, found.encoder, found.loop) == (name, ENCODER, {"best_epoch": 3})
    assert found.dataset_fingerprint == "f" * 64
    assert not found.model.training
    assert found.model.settings == model.settings
    x = torch.randn(2, 5, 768)
    with torch.inference_mode():
        assert torch.equal(found.model.predict_all(x), model.predict_all(x))


def test_the_model_comes_back_by_the_same_door(tmp_path):
    model = build_model(SHAPE).eval()
    save_checkpoint(tmp_path / "m.pt", model, dataset_fingerprint="f" * 64, encoder=ENCODER)
    found = load_predictor(tmp_path / "m.pt")
    assert found.kind == "OCPMambaLVM"
    assert isinstance(found.model, OCPMambaLVM)
    older = torch.load(tmp_path / "m.pt", weights_only=True) | {"format_version": 2}
    del older["kind"]
    torch.save(older, tmp_path / "older.pt")
    assert load_predictor(tmp_path / "older.pt").kind == "OCPMambaLVM"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"kind": "lstm"}, "kind 'lstm' is unknown; this version reads OCPMambaLVM, Ens"),
        ({"kind": "transformer"}, "its kind is 'transformer', but its content"),
        ({"settings": {"width": 3, "depth": 1}}, "its kind is 'gru'"),
        ({"settings": {"width": 7, "dropout": 0.0}}, r"that baseline: .*\(21, 768\) wanted"),
        ({"settings": {"width": 10**9}}, r"that baseline: .*settings.*width must be a whole"),
        ({"settings": {"width": 0}}, "that baseline: key 'settings': "),
        ({"settings": {"width": "7"}}, "that baseline: key 'settings': width must be"),
        ({"settings": {"width": 7, "memory_head": {"n_memory": "x"}}}, "n_memory must be a whole"),
        ({"settings": {"width": 7, "memory_head": 3}}, "that baseline: key 'settings': "),
        ({"settings": {"width": 7, "dropout": "x"}}, "that baseline: key 'settings': "),
        ({"settings": None}, "key 'settings': None found, dict wanted"),
        ({"kind": ["gru"]}, r"key 'kind': \['gru'\] found, str wanted"),
    ],
)
def test_what_says_one_thing_and_holds_another_is_refused(changed, words, tmp_path):
    path = tmp_path / "b.pt"
    saved("gru", path)
    rewrite(path, **changed)
    with pytest.raises(CheckpointError, match=rf"(?s)b\.pt: .*{words}"):
        load_predictor(path)


def test_a_model_that_is_no_baseline_is_not_saved_as_one(tmp_path):
    with pytest.raises(CheckpointError, match="a OCPMambaLVM is not one of the trained baselines"):
        save_baseline(
            tmp_path / "b.pt", build_model(SHAPE), dataset_fingerprint="", encoder=ENCODER
        )
    assert list(tmp_path.iterdir()) == []
