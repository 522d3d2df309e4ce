import pytest
import torch
from data_maker import make_dataset

from ocp_mamba.baselines.neural import (
    TRAINED_BASELINES,
    gru_of_size,
    positions,
    transformer_of_size,
)
from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import TrainingError
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.training.trainer import fit

SMALL = ModelConfig(d_model=128, n_layers=2, headdim=32)
SHAPES = {
    **MODEL_SIZES,
    "narrow": ModelConfig(d_model=32, n_layers=1, headdim=16),
    "no expansion": ModelConfig(expand=1),
    "odd": ModelConfig(d_model=96, n_layers=3, headdim=48, d_tmd=16),
}


def parameters(config):
    with torch.device("meta"):
        return build_model(config).num_parameters()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", TRAINED_BASELINES)
def test_they_have_the_models_number_of_parameters(name, shape):
    wanted = parameters(SHAPES[shape])
    with torch.device("meta"):
        made = TRAINED_BASELINES[name](SHAPES[shape], wanted)
    assert made.num_parameters() == pytest.approx(wanted, rel=0.05)
    assert sum(len(group) for group in made.decay_groups()) == len(list(made.parameters()))


def test_the_reference_sizes():
    """The figures that stand in docs/metrics.md and in reports."""
    wanted = parameters(ModelConfig())
    with torch.device("meta"):
        gru, transformer = (
            gru_of_size(ModelConfig(), wanted),
            transformer_of_size(ModelConfig(), wanted),
        )
    assert wanted == 22_144_368
    assert (gru.width, gru.num_parameters()) == (1407, 22_158_204)
    assert (transformer.width, transformer.hidden) == (768, 798)
    assert transformer.num_parameters() == 22_148_532


def test_a_transformer_is_narrowed_rather_than_starved():
    config = ModelConfig(expand=1)
    made = transformer_of_size(config, parameters(config))
    assert made.hidden >= made.width < config.d_model


@pytest.mark.parametrize("name", TRAINED_BASELINES)
def test_unit_rows_that_see_no_future_and_no_scale(name):
    torch.manual_seed(0)
    model = TRAINED_BASELINES[name](SMALL, parameters(SMALL)).eval()
    x = torch.randn(3, 14, 768)
    changed = x.clone()
    changed[:, 6:] = torch.randn(3, 8, 768)
    with torch.inference_mode():
        y = model.predict_all(x)
        torch.testing.assert_close(y.norm(dim=-1), torch.ones(3, 14))
        torch.testing.assert_close(model.predict_all(changed)[:, :6], y[:, :6])
        assert not torch.allclose(model.predict_all(changed)[:, 6:], y[:, 6:])
        torch.testing.assert_close(model.predict_all(x * 7), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TRAINED_BASELINES)
def test_the_order_of_the_context_counts(name):
    torch.manual_seed(0)
    model = TRAINED_BASELINES[name](SMALL, parameters(SMALL)).eval()
    x = torch.randn(2, 5, 768)
    swapped = x[:, [1, 0, 2, 3, 4]]
    with torch.inference_mode():
        last, last_of_swapped = (model.predict_all(v)[:, -1] for v in (x, swapped))
    assert not torch.allclose(last, last_of_swapped, atol=1e-4)


def test_every_position_has_a_code_of_its_own():
    codes = positions(64, 33)
    assert codes.shape == (64, 33)
    distances = torch.cdist(codes, codes) + torch.eye(64) * 9
    assert float(distances.min()) > 0.5


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("name", TRAINED_BASELINES)
def test_the_models_own_loop_trains_them(name, precision):
    data = make_dataset(n_chains=120, n_concepts=40, seed=2)
    config = TrainConfig(
        batch_size=16, max_epochs=3, lr=3e-3, precision=precision, infonce_weight=0.1
    )

    def train():
        torch.manual_seed(0)
        model = TRAINED_BASELINES[name](SMALL, parameters(SMALL))
        validate = validator(data, BankIndex(data.bank))
        return model, fit(model, data, config, validate=validate, progress=False)

    (model, result), (again, _) = train(), train()
    assert result.history[-1].losses["cosine"] < result.history[0].losses["cosine"] - 0.05
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


def test_only_the_model_has_a_file(tmp_path):
    data = make_dataset(n_chains=40)
    with pytest.raises(TrainingError, match=r"GRUBaseline has no \.pt file"):
        fit(
            gru_of_size(SMALL, 50_000),
            data,
            TrainConfig(),
            validate=lambda model: {"next_vec_cosine": 0.0},
            output=tmp_path / "gru.pt",
        )


def test_a_model_without_predictions_says_so():
    with pytest.raises(NotImplementedError, match="NextVectorModel has no predict_members"):
        NextVectorModel().predict_all(torch.zeros(1, 1, 768))
