"""A model that knows relations: what they add, what they must not, and that they are learnt."""

import numpy as np
import pytest
import torch
from checkpoint_files import rewrite
from click.testing import CliRunner
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.cli.main import main
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import ConfigError
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.model.base import conditions
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_checkpoint, save_checkpoint
from ocp_mamba.training.trainer import fit

SHAPE = {"d_model": 32, "n_layers": 1, "headdim": 16}
PLAIN = ModelConfig(**SHAPE)
RELATED = ModelConfig(**SHAPE, relations=("is a", "part of"))


def make(config, seed=0, *, trained=True):
    torch.manual_seed(seed)
    model = build_model(config).eval()
    if trained and hasattr(model, "relation_adapter"):
        torch.nn.init.normal_(model.relation_adapter.adapter.weight)
    return model


def steps(B, L, seed=0):
    rng = np.random.default_rng(seed)
    number = rng.integers(0, 3, (B, L))
    return torch.from_numpy(np.stack([number, rng.random((B, L)) * (number > 0)], -1)).float()


def test_before_training_it_is_the_model_without_relations():
    x, plain, related = torch.randn(2, 5, 768), make(PLAIN), make(RELATED, trained=False)
    assert torch.equal(plain(x), related(x, relations=steps(2, 5)))
    shared = {
        k: v for k, v in related.state_dict().items() if not k.startswith("relation_adapter.")
    }
    assert shared.keys() == plain.state_dict().keys(), "an older .pt has every weight it needs"


@given(seed=st.integers(0, 100), at=st.integers(0, 5))
@settings(max_examples=15, deadline=None)
def test_a_relation_is_seen_from_its_position_on_and_unknown_ones_add_nothing(seed, at):
    model, x = make(RELATED), torch.randn(2, 6, 768, generator=torch.Generator().manual_seed(seed))
    given_steps = steps(2, 6, seed)
    changed = given_steps.clone()
    changed[:, at] = torch.tensor([1.0, 0.9])
    given_steps[:, at] = torch.tensor([2.0, 0.9])
    with torch.inference_mode():
        a, b = model.predict_all(x, relations=given_steps), model.predict_all(x, relations=changed)
        torch.testing.assert_close(a[:, :at], b[:, :at])
        assert not torch.allclose(a[:, at:], b[:, at:])
        unknown = torch.zeros(2, 6, 2)
        torch.testing.assert_close(model.predict_all(x, relations=unknown), model.predict_all(x))


def test_steps_and_prefills_take_relations_as_the_whole_pass_does():
    model, x, known = make(RELATED), torch.randn(2, 7, 768), steps(2, 7)
    with torch.inference_mode():
        whole = model.predict_all(x, relations=known)
    cache = model.allocate_inference_cache(2)
    predicted = model.prefill(x[:, :3], None, cache, relations=known[:, :3])
    torch.testing.assert_close(predicted, whole[:, 2], atol=1e-5, rtol=0)
    for t in range(3, 7):
        predicted = model.step(x[:, t], None, cache, relations=known[:, t])
        torch.testing.assert_close(predicted, whole[:, t], atol=1e-5, rtol=0)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="takes no relations"):
        make(PLAIN)(torch.randn(1, 3, 768), relations=steps(1, 3))
    with pytest.raises(ValueError, match=r"shape \(1, 3, 2\), got \(1, 4, 2\)"):
        make(RELATED)(torch.randn(1, 3, 768), relations=steps(1, 4))
    with pytest.raises(ConfigError, match="d_relation"):
        ModelConfig(relations=("a",), d_relation=0)


def test_each_predictor_gets_what_it_takes():
    tmd, known = torch.zeros(1, 16), torch.zeros(1, 3, 2)
    assert conditions(make(RELATED), tmd, known).keys() == {"relations"}
    assert conditions(make(ModelConfig(**SHAPE, d_tmd=16)), tmd, known).keys() == {"tmd"}
    assert conditions(object(), tmd, known) == {}


def test_a_checkpoint_keeps_the_names_and_an_older_one_has_none(tmp_path):
    path, model = tmp_path / "model.pt", make(RELATED)
    save_checkpoint(path, model, dataset_fingerprint="f", encoder={})
    loaded = load_checkpoint(path).build_model()
    assert loaded.config.relations == ("is a", "part of")
    x, known = torch.randn(1, 4, 768), steps(1, 4)
    assert torch.equal(loaded(x, relations=known), model(x, relations=known))
    save_checkpoint(path, make(PLAIN), dataset_fingerprint="f", encoder={})
    config = torch.load(path, weights_only=True)["model_config"]
    for name in ("relations", "d_relation"):
        del config[name]  # as files written before there were relations
    rewrite(path, model_config=config)
    assert torch.equal(load_checkpoint(path).build_model()(x), make(PLAIN)(x))


def told_by_relations(n=240):
    """Chains (any, hub, target): only the relation by which the hub follows tells the target."""
    rng = np.random.default_rng(0)
    relation = rng.integers(1, 3, n)
    values = np.stack([rng.integers(3, 30, n), np.zeros(n, int), relation], axis=1)
    kinds = np.zeros((n, 3), np.uint16)
    kinds[:, 1] = relation
    return make_dataset(
        n_chains=n,
        tmd=False,
        chain_values=values.reshape(-1).astype(np.int32),
        chain_offsets=np.arange(0, 3 * n + 1, 3),
        chain_relation=kinds.reshape(-1),
        meta=make_dataset(relations=True).meta,
    )


def test_a_model_learns_from_relations_what_no_other_can_know():
    data = told_by_relations()
    config = TrainConfig(batch_size=16, max_epochs=8, lr=1e-2, precision="float32")
    found = {}
    for name, shape in {"plain": PLAIN, "related": RELATED}.items():
        model = make(shape, trained=False)
        fit(
            model,
            data,
            config,
            validate=validator(data, BankIndex(data.bank)),
            progress=False,
        )
        evaluated = evaluate(model.eval(), data, "val", name=name)
        found[name] = evaluated.figures["faiss_retrieval_p1"].value
        assert evaluated.figures["rollout/h1_cosine"].n == evaluated.n_examples
        assert evaluated.figures["sensitivity/shuffled_cosine"].n > 0
    assert found["related"] == 1.0
    assert found["plain"] < 0.8


def test_train_and_evaluate_with_relations_and_the_refusals(store, tmp_path):
    make_dataset(n_chains=80, relations=True, seed=1).save(tmp_path / "known.npz")
    make_dataset(n_chains=80, seed=1).save(tmp_path / "none.npz")

    def say(*words, code=0):
        result = CliRunner().invoke(main, list(words))
        assert result.exit_code == code, result.output
        return result.output

    small = ("--model-size", "tiny", "--n-layers", "1", "--max-epochs", "1", "--quiet")
    say("train", "--data", "known.npz", "--preset", "relations", *small, "--output", "m.pt")
    assert load_checkpoint(tmp_path / "m.pt").model_config.relations == ("is a", "part of")
    say("evaluate", "--model", "m.pt", "--data", "known.npz", "--against", "none")
    said = say("evaluate", "--model", "m.pt", "--data", "none.npz", code=2)
    assert "takes the relations is a, part of, the dataset has none" in said
    said = say("train", "--data", "none.npz", "--relations", *small, code=2)
    assert "no chain_relation" in said
