import numpy as np
import pytest
import torch
from data_maker import fields_of, make_dataset

from ocp_mamba import stats
from ocp_mamba.baselines.simple import ContextMean, Persistence
from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Examples
from ocp_mamba.data.split import families
from ocp_mamba.evaluation import sensitivity
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.predict import predict_examples
from ocp_mamba.model.build import build_model

N = 70


class Counter:
    """Knows the successor of any vector; ``ahead`` other than 1 is an off-by-one."""

    def __init__(self, bank, ahead=1):
        self.bank, self.ahead = torch.from_numpy(bank), ahead

    def predict_all(self, seq_vectors, tmd=None):
        ids = (seq_vectors @ self.bank.T).argmax(-1)
        return self.bank[(ids + self.ahead) % N]


class FirstOnly:
    """Two on from the first vector of the context, which is right where the context has two."""

    def __init__(self, bank):
        self.bank = torch.from_numpy(bank)

    def predict_all(self, seq_vectors, tmd=None):
        first = (seq_vectors[:, :1] @ self.bank.T).argmax(-1)
        return self.bank[(first + 2) % N].expand_as(seq_vectors)


@pytest.fixture(scope="module")
def counting():
    """Chains of 3 to 9 that count upwards."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, 10, 200)
    starts = rng.integers(0, N, 200)
    chains = [np.arange(s, s + n) % N for s, n in zip(starts, lengths, strict=True)]
    return make_dataset(
        n_chains=200,
        n_concepts=N,
        chain_values=np.concatenate(chains).astype(np.int32),
        chain_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def probe(function, predictor, dataset, split="val"):
    predictions = predict_examples(predictor, dataset, split)
    grouped = families(dataset, split)
    return function(predictor, dataset, dataset.examples(split), grouped, predictions, 0)


def test_a_counter_counts_on_for_five_steps(counting):
    figures = probe(sensitivity.rollout, Counter(counting.bank), counting)
    assert list(figures) == [f"rollout/h{h}_cosine" for h in range(1, 6)]
    for figure in figures.values():
        assert figure.value == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_counter_that_is_off_by_one_is_wrong_at_every_step(counting, ahead):
    for figure in probe(sensitivity.rollout, Counter(counting.bank, ahead), counting).values():
        assert figure.value < 0.2


def test_each_step_counts_the_chains_that_reach_it(counting):
    figures = probe(sensitivity.rollout, Persistence(), counting)
    examples = counting.examples("val")
    room = counting.lengths[examples.chain] - examples.position
    assert [f.n for f in figures.values()] == [(room >= h).sum() for h in range(1, 6)]


def test_the_first_step_is_the_prediction_itself(counting):
    evaluated = evaluate(ContextMean(), counting, "val", name="context_mean")
    assert evaluated.n_examples < sensitivity.SAMPLE
    assert evaluated.figures["rollout/h1_cosine"] == evaluated.figures["next_vec_cosine"]


def test_a_rollout_by_hand(counting):
    """The context mean fed back: step 2 sees the context and its mean, as one more vector."""
    figures = probe(sensitivity.rollout, ContextMean(), counting)
    examples, bank = counting.examples("val"), counting.bank
    cosines = []
    for chain, k in zip(examples.chain, examples.position, strict=True):
        ids = counting.chain(chain)
        if k + 1 < len(ids):
            total = bank[ids[:k]].sum(0)
            total = total + total / np.linalg.norm(total)
            cosines.append(total / np.linalg.norm(total) @ bank[ids[k + 1]])
    assert figures["rollout/h2_cosine"].n == len(cosines)
    assert figures["rollout/h2_cosine"].value == pytest.approx(np.mean(cosines), abs=1e-6)


def test_short_chains_roll_out_no_further_and_are_not_run():
    short = make_dataset(n_chains=60, min_length=3, max_length=4)
    figures = probe(sensitivity.rollout, Persistence(), short)
    assert figures["rollout/h2_cosine"].n > 0
    for h in (3, 4, 5):
        assert figures[f"rollout/h{h}_cosine"] == stats.Figure(None, None, None, 0)


def test_what_reads_the_last_vector_only_is_not_hurt_by_truncation(counting):
    figures = probe(sensitivity.sensitivity, Counter(counting.bank), counting)
    assert figures["sensitivity/truncated_drop"].value == pytest.approx(0.0, abs=1e-6)
    assert figures["sensitivity/reversed_cosine"].value < 0.3
    assert figures["sensitivity/shuffled_drop"].value > 0.5
    original = figures["sensitivity/original_cosine"].value
    assert original == pytest.approx(1.0, abs=1e-5)
    for change in ("shuffled", "reversed", "truncated"):
        drop = original - figures[f"sensitivity/{change}_cosine"].value
        assert figures[f"sensitivity/{change}_drop"].value == pytest.approx(drop, abs=1e-6)


def test_what_reads_the_first_vector_is_hurt_by_truncation(counting):
    figures = probe(sensitivity.sensitivity, FirstOnly(counting.bank), counting)
    assert figures["sensitivity/original_cosine"].value > 0.2
    assert figures["sensitivity/truncated_cosine"].value < 0.1
    assert figures["sensitivity/truncated_drop"].low > 0.1


def test_what_has_no_order_is_not_hurt_by_another_order(counting):
    figures = probe(sensitivity.sensitivity, ContextMean(), counting)
    for change in ("shuffled", "reversed"):
        assert figures[f"sensitivity/{change}_drop"].value == pytest.approx(0.0, abs=1e-6)


def test_a_sample_is_drawn_by_seed(counting, monkeypatch):
    monkeypatch.setattr(sensitivity, "SAMPLE", 30)
    one, again = (probe(sensitivity.rollout, Persistence(), counting) for _ in range(2))
    assert one["rollout/h1_cosine"].n == 30
    assert one == again
    for name, figure in probe(sensitivity.sensitivity, Persistence(), counting).items():
        assert figure.n == 30, name


def test_a_sample_has_each_position_as_often_as_the_split(monkeypatch):
    monkeypatch.setattr(sensitivity, "SAMPLE", 100)
    data = make_dataset(n_chains=400, split=np.ones(400, np.uint8))
    examples = data.examples("val")
    rows = np.arange(len(examples.target))
    chosen = sensitivity.choose(examples, rows, 0)
    assert len(set(chosen)) == 100
    assert not np.array_equal(chosen, sensitivity.choose(examples, rows, 1))
    for k in np.unique(examples.position):
        expected = (examples.position == k).mean() * 100
        assert abs((examples.position[chosen] == k).sum() - expected) <= 1


class Told(Counter):
    """Counts on by the number of the last relation that it is told."""

    n_relations = 2

    def predict_all(self, seq_vectors, relations):
        ids = (seq_vectors @ self.bank.T).argmax(-1)
        return self.bank[(ids + relations[..., 0].long()) % N]


def test_what_counts_by_relations_is_hurt_by_others_and_by_none():
    """In a chain all steps go one on, or all two on: the last relation says which."""
    rng = np.random.default_rng(0)
    wide = rng.integers(1, 3, 100)
    chains = [
        (s + w * np.arange(6)) % N for s, w in zip(rng.integers(0, N, 100), wide, strict=True)
    ]
    known = np.repeat(wide[:, None], 6, axis=1).astype(np.uint16)
    known[:, 0] = 0
    plain = make_dataset(
        n_chains=100,
        n_concepts=N,
        chain_values=np.concatenate(chains).astype(np.int32),
        chain_offsets=np.arange(101) * 6,
    )
    meta = plain.meta | {"relations": ["one on", "two on"]}
    related = type(plain)(**fields_of(plain) | {"chain_relation": known.ravel(), "meta": meta})
    figures = probe(sensitivity.sensitivity, Told(plain.bank), related)
    assert figures["sensitivity/original_cosine"].value == pytest.approx(1.0, abs=1e-5)
    assert 0.4 < figures["sensitivity/relations_shuffled_cosine"].value < 0.7
    assert abs(figures["sensitivity/relations_hidden_cosine"].value) < 0.1
    hidden = figures["sensitivity/relations_hidden_drop"].value
    assert hidden > figures["sensitivity/relations_shuffled_drop"].value > 0.3
    assert not [
        n for n in probe(sensitivity.sensitivity, Persistence(), related) if "relations" in n
    ]


def test_no_examples_is_not_run():
    empty = make_dataset(split=np.zeros(40, np.uint8))
    none = Examples(*(np.zeros(0, np.int64) for _ in range(4)))
    knowing = make_dataset(split=np.zeros(40, np.uint8), relations=True)
    for function, predictor, data in (
        (sensitivity.sensitivity, Persistence(), empty),
        (sensitivity.sensitivity, Told(empty.bank), knowing),
        (sensitivity.rollout, Persistence(), empty),
    ):
        for figure in function(predictor, data, none, none.chain, torch.zeros(0, 768), 0).values():
            assert figure.n == 0
            assert figure.value is None


def test_contexts_of_any_length_come_back_in_their_order(monkeypatch):
    monkeypatch.setattr(sensitivity, "BATCH", 4)
    torch.manual_seed(0)
    model = build_model(ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=16)).eval()
    contexts = [torch.randn(n, 768) for n in (3, 1, 7, 2, 5, 4, 9, 1, 6)]
    tmd = torch.randn(9, 16)
    together = sensitivity.predict_next(model, contexts, tmd)
    with torch.inference_mode():
        for i, context in enumerate(contexts):
            alone = model(context[None], tmd[i : i + 1])[0]
            torch.testing.assert_close(together[i], alone, rtol=1e-4, atol=1e-5)


def test_a_tmd_model_is_probed_with_its_codes(counting):
    torch.manual_seed(0)
    model = build_model(ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=16)).eval()
    assert probe(sensitivity.rollout, model, counting)["rollout/h2_cosine"].n > 0


@pytest.mark.parametrize("d_tmd", [0, 16])
def test_a_model_with_a_cache_rolls_out_as_one_that_reads_again(counting, d_tmd, monkeypatch):
    torch.manual_seed(0)
    config = ModelConfig(d_model=32, n_layers=2, headdim=16, d_tmd=d_tmd)
    model = build_model(config).eval()
    remembered = probe(sensitivity.rollout, model, counting)
    monkeypatch.setattr(sensitivity, "OCPMambaLVM", type(None))  # no predictor has a cache
    again = probe(sensitivity.rollout, model, counting)
    for name, figure in again.items():
        assert remembered[name].n == figure.n > 0
        assert remembered[name].value == pytest.approx(figure.value, abs=1e-5)
