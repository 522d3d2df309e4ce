import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_maker import make_dataset

from ocp_mamba.baselines.simple import ContextMean, GlobalMean, Persistence
from ocp_mamba.config import ModelConfig
from ocp_mamba.data.analysis.leakage import strata
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.latency import inference_latency
from ocp_mamba.evaluation.predict import predict_examples
from ocp_mamba.evaluation.result import paired_difference
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.stats import Figure


@pytest.fixture(scope="module")
def data():
    return make_dataset(n_chains=120, n_concepts=80, seed=5)


class Oracle:
    """Knows the next vector at every position: a bank where each concept has one successor."""

    def __init__(self, bank, ahead=1):
        self.bank = torch.from_numpy(bank)
        self.ahead = ahead

    def predict_all(self, seq_vectors, tmd=None):
        ids = (seq_vectors @ self.bank.T).argmax(-1)
        return self.bank[(ids + self.ahead) % len(self.bank)]


class Noise:
    def predict_all(self, seq_vectors, tmd=None):
        generator = torch.Generator().manual_seed(0)
        return F.normalize(torch.randn(seq_vectors.shape, generator=generator), dim=-1)


@pytest.fixture(scope="module")
def counting():
    """Chains that count upwards: the successor of concept i is always i + 1."""
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 60, 100)
    lengths = rng.integers(3, 10, 100)
    chains = [np.arange(s, s + n) % 70 for s, n in zip(starts, lengths, strict=True)]
    return make_dataset(
        n_chains=100,
        n_concepts=70,
        chain_values=np.concatenate(chains).astype(np.int32),
        chain_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


def test_predictions_stand_in_the_order_of_the_examples(data):
    predicted = predict_examples(Persistence(), data, "val")
    examples = data.examples("val")
    np.testing.assert_array_equal(predicted.numpy(), data.bank[examples.last])


def test_each_prediction_is_that_of_its_own_prefix_alone(data):
    torch.manual_seed(0)
    model = OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=16)).eval()
    predicted = predict_examples(model, data, "val")
    examples = data.examples("val")
    for row in range(0, len(examples.target), 17):
        chain, k = examples.chain[row], examples.position[row]
        context = torch.from_numpy(data.bank[data.chain(chain)[:k]])[None]
        with torch.inference_mode():
            alone = model(context, torch.from_numpy(data.chain_tmd[[chain]]))[0]
        torch.testing.assert_close(predicted[row], alone, rtol=1e-4, atol=1e-5)


def test_an_oracle_scores_one_and_persistence_scores_what_it_must(counting):
    evaluated = evaluate(Oracle(counting.bank), counting, "val", name="oracle")
    for metric in ("next_vec_cosine", "faiss_retrieval_p1", "echo_loop_similarity"):
        assert evaluated.figures[metric].value == pytest.approx(1.0, abs=1e-5)
    lazy = evaluate(Persistence(), counting, "val", name="persistence")
    examples = counting.examples("val")
    cosines = (counting.bank[examples.last] * counting.bank[examples.target]).sum(1)
    assert lazy.figures["next_vec_cosine"].value == pytest.approx(cosines.mean(), abs=1e-6)
    assert lazy.figures["faiss_retrieval_p1"].value == 0.0
    assert lazy.figures["echo_to_prediction"].value == pytest.approx(1.0, abs=1e-5)


def test_targets_off_by_one_are_seen_in_the_figures(counting):
    for ahead in (0, 2):
        evaluated = evaluate(Oracle(counting.bank, ahead), counting, "val", name="off by one")
        assert evaluated.figures["faiss_retrieval_p1"].value == 0.0
        assert evaluated.figures["next_vec_cosine"].value < 0.2


def test_figures_carry_pool_chance_strata_and_interval(data):
    evaluated = evaluate(ContextMean(), data, "val", name="context_mean")
    numbers = evaluated.flat()
    assert numbers["retrieval_pool_size"] == 80
    assert numbers["retrieval_chance_p1"] == 1 / 80
    chosen = strata(data, "val")
    for stratum, members in chosen.items():
        assert numbers[f"n/{stratum}/next_vec_cosine"] == members.sum()
    low, high = (numbers[f"interval/next_vec_cosine_{end}"] for end in ("low", "high"))
    assert low <= numbers["next_vec_cosine"] <= high
    written = evaluated.to_dict()
    assert written["figures"]["next_vec_cosine"]["n"] == evaluated.n_examples
    assert written["dataset_fingerprint"] == data.fingerprint


def test_found_and_rank_stand_in_the_order_of_the_examples(data):
    evaluated = evaluate(GlobalMean(data), data, "val", name="global_mean")
    examples = data.examples("val")
    assert evaluated.found.shape == (len(examples.target), 10)
    rank = evaluated.per_example["rank"]
    where = evaluated.found == examples.target[:, None]
    inside = where.any(axis=1)
    assert 0 < inside.sum() < len(inside)
    np.testing.assert_array_equal(rank[inside], where[inside].argmax(axis=1) + 1)
    assert (rank[~inside] > 10).all()
    assert evaluated.figures["mrr"].value == pytest.approx((1 / rank).mean())
    assert "rank" not in evaluated.figures
    assert "found" not in evaluated.to_dict()


def test_a_copied_input_has_the_lowest_margin_and_the_context_mean_stands_beside_it(data):
    examples = data.examples("val")
    copied = evaluate(Persistence(), data, "val", name="persistence").figures
    cosines = (data.bank[examples.last] * data.bank[examples.target]).sum(1)
    assert copied["margin"].value == pytest.approx((cosines - 1).mean(), abs=1e-6)
    mean = evaluate(ContextMean(), data, "val", name="context_mean").figures
    assert copied["context_mean_margin"] == mean["margin"]


def test_an_oracle_beats_any_other_target_and_noise_half_of_them(counting):
    oracle = evaluate(Oracle(counting.bank), counting, "val", name="oracle")
    assert oracle.figures["contrastive_accuracy"].value == 1.0
    noise = evaluate(Noise(), counting, "val", name="noise").figures["contrastive_accuracy"]
    assert noise.value == pytest.approx(0.5, abs=0.15)


def test_collapse_shows_in_variance_and_in_the_cosine_to_the_global_mean(counting):
    oracle = evaluate(Oracle(counting.bank), counting, "val", name="oracle")
    scalars = oracle.scalars
    assert scalars["prediction_variance"] == pytest.approx(scalars["target_variance"], abs=1e-5)
    figures = oracle.figures
    assert figures["cosine_to_global_mean"].value == pytest.approx(
        figures["target_cosine_to_global_mean"].value, abs=1e-5
    )
    collapsed = evaluate(GlobalMean(counting), counting, "val", name="global_mean")
    assert collapsed.flat()["prediction_variance"] == pytest.approx(0.0, abs=1e-6)
    assert collapsed.to_dict()["scalars"]["target_variance"] == scalars["target_variance"]
    assert collapsed.figures["cosine_to_global_mean"].value == pytest.approx(1.0, abs=1e-5)


def test_positions_and_sources_part_the_examples(data):
    evaluated = evaluate(ContextMean(), data, "val", name="context_mean")
    examples = data.examples("val")
    for family in ("position/", "source/"):
        parts = {k: f for k, f in evaluated.figures.items() if k.startswith(family)}
        cosines = {k: f for k, f in parts.items() if k.endswith("_cosine")}
        assert 2 * len(cosines) == len(parts)
        assert sum(f.n for f in cosines.values()) == evaluated.n_examples
        whole = sum(f.n * f.value for f in cosines.values()) / evaluated.n_examples
        assert whole == pytest.approx(evaluated.figures["next_vec_cosine"].value)
    at_four = evaluated.per_example["faiss_retrieval_p1"][examples.position == 4]
    assert evaluated.figures["position/k4_p1"].value == at_four.mean()
    assert set(data.meta["sources"]) == {"wordnet", "swo"}
    assert {"source/wordnet_p1", "source/swo_p1"} <= set(evaluated.figures)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_reports_its_recall_and_is_not_paired_with_exact(data, kind):
    exact = evaluate(ContextMean(), data, "val", name="exact")
    quick = evaluate(ContextMean(), data, "val", name="quick", index=BankIndex(data.bank, kind))
    assert "faiss_recall_at_1" not in exact.flat()
    assert 0.5 < quick.flat()["faiss_recall_at_1"] <= 1.0
    assert quick.tags()["retrieval.index"] == kind
    assert quick.figures["mrr"] == exact.figures["mrr"]
    with pytest.raises(ValueError, match=f"differ in index: exact and {kind}"):
        paired_difference(exact, quick, "faiss_retrieval_p1")


def test_an_empty_split_is_not_run_everywhere(data):
    emptied = make_dataset(n_chains=120, n_concepts=80, seed=5, split=np.zeros(120, np.uint8))
    evaluated = evaluate(Persistence(), emptied, "val", name="persistence")
    assert evaluated.n_examples == 0
    assert evaluated.flat()["retrieval_pool_size"] == 80
    assert set(gates.evaluate_gates(evaluated, {"persistence": evaluated}).values()) == {
        gates.NOT_RUN
    }
    with pytest.raises(ValueError, match="val split has no examples"):
        validator(emptied, BankIndex(emptied.bank))


def test_validator_agrees_with_the_whole_evaluation(data):
    torch.manual_seed(0)
    model = OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16)).eval()
    quick = validator(data, BankIndex(data.bank))(model)
    evaluated = evaluate(model, data, "val", name="model")
    assert quick["next_vec_cosine"] == pytest.approx(evaluated.figures["next_vec_cosine"].value)
    assert quick["retrieval_p1"] == pytest.approx(evaluated.figures["faiss_retrieval_p1"].value)


def test_paired_difference_is_by_example_and_refuses_other_data(data, counting):
    a = evaluate(ContextMean(), data, "val", name="a")
    b = evaluate(Persistence(), data, "val", name="b")
    difference = paired_difference(a, b, "next_vec_cosine")
    expected = a.figures["next_vec_cosine"].value - b.figures["next_vec_cosine"].value
    assert difference.value == pytest.approx(expected, abs=1e-6)
    assert paired_difference(a, a, "next_vec_cosine") == Figure(0.0, 0.0, 0.0, a.n_examples)
    unseen = paired_difference(a, b, "next_vec_cosine", "unseen")
    gap = [e.figures["unseen/next_vec_cosine"].value for e in (a, b)]
    assert unseen.n == a.strata["unseen"].sum() < a.n_examples
    assert unseen.value == pytest.approx(gap[0] - gap[1], abs=1e-6)
    other = evaluate(Persistence(), counting, "val", name="other")
    with pytest.raises(ValueError, match="differ in dataset_fingerprint"):
        paired_difference(a, other, "next_vec_cosine")


def test_a_prediction_that_is_not_finite_is_an_error_not_a_figure(data):
    class Broken:
        def predict_all(self, seq_vectors, tmd=None):
            return seq_vectors * float("nan")

    with pytest.raises(ValueError, match="not finite"):
        evaluate(Broken(), data, "val", name="broken")


def test_latency_is_positive_and_ordered():
    model = OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16, d_tmd=16)).eval()
    latency = inference_latency(model)
    assert 0 < latency["inference_latency_ms"] <= latency["inference_latency_ms_p95"]


def test_gates_pass_and_fail_on_what_they_name(counting):
    oracle = evaluate(Oracle(counting.bank), counting, "val", name="oracle")
    lazy = evaluate(Persistence(), counting, "val", name="persistence")
    good = gates.evaluate_gates(
        oracle, {"persistence": lazy}, trends=[None, 0.1, 0.1], train_minutes=5.0,
        inference_ready=True, leaks=False, same_encoder=True,
    )  # fmt: skip
    assert good.pop("unseen_beats_ridge") == gates.NOT_RUN
    assert set(good.values()) == {gates.PASS}
    bad = gates.evaluate_gates(
        lazy, {"oracle": oracle}, trends=[None, -0.1, -0.1], train_minutes=500.0,
        inference_ready=False, leaks=True, same_encoder=False,
    )  # fmt: skip
    assert bad.pop("unseen_beats_ridge") == gates.NOT_RUN
    assert bad.pop("not_collapsed") == bad.pop("causal") == gates.PASS
    assert bad.pop("targets_vary") == gates.PASS
    assert set(bad.values()) == {gates.FAIL}
    assert gates.beats_gate(oracle, {"itself": oracle}, "next_vec_cosine") == gates.FAIL
    unknown = gates.evaluate_gates(oracle, {}, trends=[None, 0.1])
    assert unknown["improvement_trend"] == gates.NOT_RUN
    assert unknown["beats_baselines_cosine"] == gates.NOT_RUN
    assert unknown["train_time"] == unknown["inference_ready"] == unknown["no_leak"] == "not-run"
    assert unknown["next_vec_cosine"] == gates.PASS


def test_random_vectors_score_chance(data):
    evaluated = evaluate(Noise(), data, "val", name="noise")
    assert abs(evaluated.figures["next_vec_cosine"].value) < 0.02
    assert evaluated.figures["faiss_retrieval_p1"].value < 0.06
