import math

import pytest
import torch
import torch.nn.functional as F
from checkpoint_files import rewrite
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import CheckpointError
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from ocp_mamba.model.mamba2 import Mamba2Mixer

SMALL = ModelConfig(d_model=32, n_layers=2, headdim=16, chunk_size=8)


def seeded(config=SMALL, seed=0):
    torch.manual_seed(seed)
    return build_model(config).eval()


def vectors(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=generator, dtype=dtype), dim=-1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
@pytest.mark.parametrize("length", [1, 13, 40])
def test_mixer_equals_transformers_mamba2_in_outputs_and_gradients(
    dtype, tolerance, length, monkeypatch
):
    from transformers.models.mamba2.configuration_mamba2 import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer as TheirMixer

    config = ModelConfig(d_model=64, n_layers=1, d_state=16, headdim=16, chunk_size=16)
    torch.manual_seed(0)
    ours = Mamba2Mixer(config).to(dtype)
    theirs = TheirMixer(
        Mamba2Config(
            hidden_size=64, num_heads=8, head_dim=16, state_size=16, n_groups=1, conv_kernel=4,
            expand=2, chunk_size=16, use_bias=False, use_conv_bias=True, num_hidden_layers=1,
        ),
        layer_idx=0,
    ).to(dtype)  # fmt: skip
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = torch.randn(3, length, 64, dtype=dtype)
    weights = torch.randn(3, length, 64, dtype=dtype)
    ours_out = ours(x)
    with monkeypatch.context() as patch:
        # Their code casts to float32 inside; lift those casts, to compare in the test's precision.
        patch.setattr(torch, "float32", dtype)
        patch.setattr(torch.Tensor, "float", lambda self: self.to(dtype))
        theirs_out = theirs(x)
    torch.testing.assert_close(ours_out, theirs_out, rtol=tolerance, atol=tolerance)
    (ours_out * weights).sum().backward()
    (theirs_out * weights).sum().backward()
    for (name, a), (_, b) in zip(
        sorted(ours.named_parameters()), sorted(theirs.named_parameters()), strict=True
    ):
        assert a.grad is not None
        scale = b.grad.abs().max().clamp(min=1)
        torch.testing.assert_close(
            a.grad / scale, b.grad / scale, rtol=tolerance, atol=tolerance, msg=name
        )


def test_mixer_has_mamba_ssms_parameter_names_and_shapes():
    c = ModelConfig()
    shapes = {name: tuple(p.shape) for name, p in Mamba2Mixer(c).state_dict().items()}
    assert shapes == {
        "in_proj.weight": (3128, 768),
        "conv1d.weight": (1568, 1, 4),
        "conv1d.bias": (1568,),
        "dt_bias": (24,),
        "A_log": (24,),
        "D": (24,),
        "norm.weight": (1536,),
        "out_proj.weight": (768, 1536),
    }


@settings(max_examples=20, deadline=None)
@given(length=st.integers(2, 30), cut=st.integers(1, 29), seed=st.integers(0, 1000))
def test_causality_a_later_vector_never_changes_an_earlier_prediction(length, cut, seed):
    cut = min(cut, length - 1)
    model = seeded()
    x = vectors(2, length, 768, seed=seed)
    changed = x.clone()
    changed[:, cut:] = vectors(2, length - cut, 768, seed=seed + 1)
    with torch.no_grad():
        a, b = model.predict_all(x), model.predict_all(changed)
    torch.testing.assert_close(a[:, :cut], b[:, :cut], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(a[:, cut:], b[:, cut:], atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4), extra=st.integers(0, 9))
def test_padding_never_changes_a_prediction(lengths, extra):
    model = seeded()
    L = max(lengths) + extra
    rows = [vectors(n, 768, seed=i) for i, n in enumerate(lengths)]
    padded = torch.stack([F.pad(row, (0, 0, 0, L - len(row))) for row in rows])
    rubbish = padded.clone()
    for i, n in enumerate(lengths):
        rubbish[i, n:] = 7.0
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in rows])
        for batch in (padded, rubbish):
            together = model(batch, lengths=torch.tensor(lengths))
            torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_predictions_are_unit_rows_and_only_the_direction_of_an_input_counts():
    model = seeded()
    x = vectors(3, 5, 768)
    with torch.no_grad():
        y = model(x)
        torch.testing.assert_close(y.norm(dim=-1), torch.ones(3))
        torch.testing.assert_close(model(x * 3.7), y, rtol=1e-5, atol=1e-5)


def test_members_share_the_layers_and_the_prediction_is_their_means_direction():
    config = ModelConfig(d_model=32, headdim=16, n_layers=5, members=2)
    model, seq = build_model(config).eval(), torch.randn(3, 7, 768)
    assert config.depths == (3, 2)
    assert set(model.state_dict()) == set(
        build_model(ModelConfig(d_model=32, headdim=16, n_layers=5)).state_dict()
    )
    own = model.predict_members(seq)
    assert own.shape == (2, 3, 7, 768)
    assert torch.allclose(model.predict_all(seq), F.normalize(own.sum(0), dim=-1), atol=1e-6)
    with torch.no_grad():
        model.layers[4].mixer.out_proj.weight.mul_(-1)
    changed = model.predict_members(seq)
    assert torch.equal(changed[0], own[0])
    assert not torch.allclose(changed[1], own[1])


def test_a_single_member_is_a_plain_stack():
    model, seq = (
        build_model(ModelConfig(d_model=32, headdim=16, n_layers=2)),
        torch.randn(1, 4, 768),
    )
    x = model.embed(seq, None)
    for layer in model.layers:
        x = x + layer.mixer(layer.norm(x))
    assert torch.equal(model.predict_all(seq), model.head(x))


def test_tmd_is_broadcast_to_every_position_and_changes_the_prediction():
    model = seeded(ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=16))
    x, tmd = vectors(2, 4, 768), vectors(2, 16)
    with torch.no_grad():
        assert not torch.allclose(model.predict_all(x, tmd)[:, 0], model.predict_all(x, -tmd)[:, 0])
    with pytest.raises(ValueError, match=r"tmd of shape \(B, 16\)"):
        model(x)
    with pytest.raises(ValueError, match=r"\(2, 16\), got \(2, 3\)"):
        model(x, tmd[:, :3])
    with pytest.raises(ValueError, match="no tmd"):
        seeded()(x, tmd)


@pytest.mark.parametrize("shape", [(2, 768), (2, 0, 768), (2, 3, 384)])
def test_wrong_input_shape_is_named(shape):
    with pytest.raises(ValueError, match=r"must have shape \(B, L, 768\), got"):
        seeded()(torch.zeros(shape))


@pytest.mark.parametrize("lengths", [[0, 3], [3, 4], [3]])
def test_wrong_lengths_are_named(lengths):
    with pytest.raises(ValueError, match="lengths must hold 2 numbers from 1 to 3"):
        seeded()(torch.ones(2, 3, 768), lengths=torch.tensor(lengths))


def test_every_parameter_is_initialised_by_the_documented_scheme():
    torch.manual_seed(1)
    model = build_model(ModelConfig(n_layers=2))
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for layer in model.layers:
        dt = F.softplus(layer.mixer.dt_bias)
        assert dt.min() >= 0.99e-3
        assert dt.max() <= 1.01e-1
        A = layer.mixer.A_log.exp()
        assert A.min() >= 1
        assert A.max() <= 16
        assert A.std() > 2
        assert (layer.mixer.D == 1).all()
        bound = 1 / math.sqrt(1536) / math.sqrt(2)
        assert 0.9 * bound < layer.mixer.out_proj.weight.abs().max() <= bound
    torch.manual_seed(1)
    again = build_model(ModelConfig(n_layers=2))
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_weight_decay_is_kept_off_the_state_space_parameters():
    model = seeded()
    decay, no_decay = model.decay_groups()
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(decay) + len(no_decay) == len(names)
    kept_off = {names[id(p)].rsplit(".", 1)[-1] for p in no_decay}
    assert {"dt_bias", "A_log", "D", "bias"} <= kept_off
    assert all(names[id(p)].endswith("weight") for p in decay)


def test_reference_size_is_what_the_readme_says():
    config = ModelConfig()
    per_layer = 3128 * 768 + 768 * 1536 + 1568 * 5 + 3 * 24 + 1536 + 768
    assert build_model(config).num_parameters() == 6 * per_layer + 768 + 768 * 768 + 768


def test_checkpoint_round_trip_restores_the_very_predictions(tmp_path):
    model, x = seeded(), vectors(2, 5, 768)
    path = tmp_path / "sub" / "model.pt"
    save_checkpoint(
        path, model, dataset_fingerprint="f" * 64, encoder={"name": "e"}, loop={"epoch": 3}
    )
    checkpoint = load_checkpoint(path)
    assert checkpoint.dataset_fingerprint == "f" * 64
    assert checkpoint.encoder == {"name": "e"}
    assert checkpoint.loop == {"epoch": 3}
    assert torch.equal(load_model(path)(x), model(x))
    assert [p.name for p in path.parent.iterdir()] == ["model.pt"]


def test_checkpoint_errors_name_the_file_and_the_reason(tmp_path):
    path = tmp_path / "model.pt"
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"model\.pt: not readable"):
        load_checkpoint(path)
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match="weights_only"):
        load_checkpoint(path)
    torch.save({"weights": 1}, path)
    with pytest.raises(CheckpointError, match="no format_version"):
        load_checkpoint(path)
    torch.save({"format_version": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)
    save_checkpoint(path, seeded(), dataset_fingerprint="", encoder={})
    config = torch.load(path, weights_only=True)["model_config"]
    rewrite(path, to=path.with_name("other.pt"), model_config=config | {"n_layers": 3})
    with pytest.raises(CheckpointError, match="do not fit"):
        load_model(path.with_name("other.pt"))
    rewrite(path, "encoder")
    with pytest.raises(CheckpointError, match="encoder"):
        load_checkpoint(path)
