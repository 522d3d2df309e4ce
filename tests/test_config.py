import pytest

from ocp_mamba.config import (
    MODEL_SIZES,
    ModelConfig,
    TrainConfig,
    model_config,
    override,
)
from ocp_mamba.errors import ConfigError


def test_small_is_the_shape_of_the_specification():
    small = MODEL_SIZES["small"]
    assert (small.d_model, small.n_layers, small.d_state) == (768, 6, 16)
    assert (small.d_inner, small.nheads) == (1536, 24)
    assert small.depths == (6,)
    assert (small.members, small.n_memory) == (1, 0)


def test_layers_are_shared_out_evenly():
    assert ModelConfig(n_layers=8, members=3).depths == (3, 3, 2)
    assert ModelConfig(n_layers=8).depths == (8,)


def test_none_keeps_a_value_and_an_unknown_name_is_refused():
    assert override(TrainConfig(lr=3e-4), lr=None, seed=5) == TrainConfig(lr=3e-4, seed=5)
    with pytest.raises(ConfigError, match=r"TrainConfig has no setting 'learning_rate'.*'lr'"):
        override(TrainConfig(), learning_rate=1.0)
    with pytest.raises(ConfigError, match="tiny, small, base"):
        model_config("huge")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(n_layers=0), "n_layers must be at least 1, got 0"),
        (lambda: ModelConfig(d_model=100), "200 must be a multiple of headdim = 64"),
        (
            lambda: ModelConfig(n_layers=2, members=3),
            "members = 3 stacks cannot share n_layers = 2",
        ),
        (lambda: ModelConfig(d_tmd=3), "d_tmd must be 0 or 16, got 3"),
        (lambda: ModelConfig(dropout=1.0), "dropout"),
        (lambda: TrainConfig(lr=0), "lr must be positive, got 0"),
        (lambda: TrainConfig(batch_size=0), "batch_size must be at least 1"),
        (lambda: TrainConfig(patience=-1), "patience must not be negative"),
        (lambda: TrainConfig(trend_epochs=1), "trend_epochs"),
        (lambda: TrainConfig(warmup_fraction=1.5), "warmup_fraction"),
        (lambda: TrainConfig(precision="fp8"), "auto, float32 or bf16, got 'fp8'"),
    ],
)
def test_a_value_out_of_range_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(n_layers="6"), "n_layers must be a whole number, .* got '6'"),
        (lambda: ModelConfig(n_layers=True), "n_layers must be a whole number"),
        (lambda: ModelConfig(n_layers=10**5000), "n_layers must be .* got a very large int"),
        (lambda: ModelConfig(d_model=10**9), "d_model must be a whole number, 65,536 at most"),
        (lambda: ModelConfig(relations="isa"), "relations must be a list of names"),
        (lambda: ModelConfig(dropout=None), "dropout must be a finite number, got None"),
        (lambda: TrainConfig(lr=float("inf")), "lr must be a finite number, got inf"),
        (lambda: TrainConfig(lr=float("nan")), "lr must be a finite number, got nan"),
        (lambda: TrainConfig(lr=10**400), "lr must be a finite number"),
        (lambda: TrainConfig(batch_size=1.5), r"batch_size must be a whole number, .* got 1\.5"),
        (lambda: TrainConfig(precision=["bf16"]), "precision must be text"),
    ],
)
def test_a_value_of_another_type_is_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
