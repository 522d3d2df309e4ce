from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_maker import make_dataset

from ocp_mamba import stats
from ocp_mamba.baselines.simple import GlobalMean, Persistence
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate


class Blend:
    """The true successor of a counting chain, mixed with a fixed direction."""

    def __init__(self, bank, fixed=0.0, ahead=1):
        self.bank, self.fixed, self.ahead = torch.from_numpy(bank), fixed, ahead

    def predict_all(self, seq_vectors, tmd=None):
        ids = (seq_vectors @ self.bank.T).argmax(-1)
        truth = self.bank[(ids + self.ahead) % len(self.bank)]
        mean = F.normalize(self.bank.mean(dim=0), dim=0)
        return F.normalize((1 - self.fixed) * truth + self.fixed * mean, dim=-1)


@pytest.fixture(scope="module")
def counting():
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 70, 150), rng.integers(3, 10, 150)
    chains = [np.arange(s, s + n) % 70 for s, n in zip(starts, lengths, strict=True)]
    chains[0] = np.array([1, 30, 60])  # a transition that train does not have
    lengths[0] = 3
    split = rng.choice(3, 150, p=[0.6, 0.2, 0.2]).astype(np.uint8)
    split[0] = 1
    return make_dataset(
        n_chains=150,
        n_concepts=70,
        chain_values=np.concatenate(chains).astype(np.int32),
        chain_offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        split=split,
    )


def evaluated(predictor, data, name="it"):
    return evaluate(predictor, data, "val", name=name)


def with_unseen(evaluation, per_example):
    """The same evaluation with every example unseen and other numbers behind its figures."""
    everything = np.ones(evaluation.n_examples, bool)
    return replace(
        evaluation,
        strata={"unseen": everything},
        per_example=evaluation.per_example | per_example,
    )


def test_unseen_must_beat_ridge_in_cosine_and_in_p1(counting):
    ridge = with_unseen(evaluated(Persistence(), counting, "ridge"), {})
    n = ridge.n_examples
    better = {k: ridge.per_example[k] + 0.1 for k in ("next_vec_cosine", "faiss_retrieval_p1")}
    assert gates.unseen_gate(with_unseen(ridge, better), {"ridge": ridge}) == gates.PASS
    for metric in better:
        one = with_unseen(ridge, {metric: better[metric]})
        assert gates.unseen_gate(one, {"ridge": ridge}) == gates.FAIL
    noisy = np.random.default_rng(0).normal(0.001, 1.0, n)
    unsure = {k: v + noisy for k, v in ridge.per_example.items() if k in better}
    assert gates.unseen_gate(with_unseen(ridge, unsure), {"ridge": ridge}) == gates.FAIL


def test_unseen_is_not_run_without_ridge_or_unseen_examples(counting):
    ours = evaluated(Blend(counting.bank), counting)
    assert ours.strata["unseen"].any()
    assert gates.unseen_gate(ours, {"persistence": ours}) == gates.NOT_RUN
    none = replace(ours, strata={"unseen": np.zeros(ours.n_examples, bool)})
    assert gates.unseen_gate(none, {"ridge": ours}) == gates.NOT_RUN


def test_collapse_is_seen_in_all_its_degrees(counting):
    assert gates.collapse_gate(evaluated(Blend(counting.bank), counting)) == gates.PASS
    assert gates.collapse_gate(evaluated(GlobalMean(counting), counting)) == gates.FAIL
    assert gates.collapse_gate(evaluated(Blend(counting.bank, 0.9), counting)) == gates.FAIL


def test_either_sign_of_collapse_is_enough(counting):
    ours = evaluated(Blend(counting.bank), counting)
    flat = ours.scalars | {"prediction_variance": 0.24 * ours.scalars["target_variance"]}
    assert gates.collapse_gate(replace(ours, scalars=flat)) == gates.FAIL
    middle = (1 + ours.figures["target_cosine_to_global_mean"].value) / 2
    near = replace(ours.figures["cosine_to_global_mean"], high=middle + 0.01)
    figures = ours.figures | {"cosine_to_global_mean": near}
    assert gates.collapse_gate(replace(ours, figures=figures)) == gates.FAIL
    del figures["cosine_to_global_mean"]
    assert gates.collapse_gate(replace(ours, figures=figures)) == gates.NOT_RUN


def test_encoders_are_compared_by_hash_and_else_by_parity():
    one, other = {"weight_hash": "1" * 64}, {"weight_hash": "2" * 64}
    assert gates.same_encoder(one, one) is True
    assert gates.same_encoder(one, other) is False
    assert gates.same_encoder(one, {}) is None
    assert gates.same_encoder({"weight_hash": "unknown"}, one) is None
    assert gates.encoder_gate(True, False) == gates.PASS
    assert gates.encoder_gate(False, True) == gates.FAIL
    assert gates.encoder_gate(None, True) == gates.PASS
    assert gates.encoder_gate(None, False) == gates.NOT_RUN


def test_the_trend_is_the_metric_of_the_last_epoch():
    def trends(*cosines):
        return [stats.slope(cosines[: n + 1]) if n >= 2 else None for n in range(len(cosines))]

    plateau = trends(0.10, 0.50, 0.60, 0.62, 0.61, 0.60)
    assert gates.trend_gate(plateau) == gates.PASS, "early stopping ended it on a plateau"
    assert gates.trend_gate(plateau[:2]) == gates.NOT_RUN
    assert gates.trend_gate(trends(0.60, 0.50, 0.55, 0.40)) == gates.FAIL
    assert gates.trend_gate([0.1, 0.1, -0.1]) == gates.FAIL, "the last one counts"
    assert gates.trend_gate([]) == gates.NOT_RUN


def test_a_gate_says_what_it_rests_on(counting):
    ours = evaluated(Blend(counting.bank), counting)
    lazy = {"persistence": evaluated(Persistence(), counting, "persistence")}
    found = gates.evaluate_gates(ours, lazy, trends=[None, 0.1, 0.2], leaks=False)
    for name, verdict in found.items():
        assert verdict.threshold, name
        assert verdict.value or verdict.reason, name
        assert verdict.to_dict()["verdict"] == verdict
    assert found["next_vec_cosine"].value == f"{ours.figures['next_vec_cosine'].value:.4f}"
    assert f"n = {ours.n_examples}" in found["beats_baselines_p1"].reason
    assert "least lead, over persistence" in found["beats_baselines_p1"].reason
    assert found["unseen_beats_ridge"].reason == "ridge was not evaluated"
    assert gates.as_verdict("fail") == gates.FAIL


def test_nothing_is_said_on_few_sequences(counting):
    """Five unseen transitions, all right, beat nobody."""
    ridge = with_unseen(evaluated(Persistence(), counting, "ridge"), {})
    better = {k: ridge.per_example[k] + 0.1 for k in ("next_vec_cosine", "faiss_retrieval_p1")}
    few = np.arange(ridge.n_examples) < 5
    verdict = gates.unseen_gate(
        replace(with_unseen(ridge, better), strata={"unseen": few}), {"ridge": ridge}
    )
    assert verdict == gates.NOT_RUN
    assert verdict.reason == "n = 5 unseen transitions, at least 30 are needed"
    small = make_dataset(n_chains=12, n_concepts=20, seed=1, max_length=3)
    found = gates.evaluate_gates(evaluated(Persistence(), small), {})
    for name in ("next_vec_cosine", "not_collapsed"):
        assert found[name] == gates.NOT_RUN
        assert "at least 30 are needed" in found[name].reason


def test_failed_lists_the_failures_alone():
    assert gates.failed({"a": "pass", "b": "fail", "c": "not-run", "d": "fail"}) == ["b", "d"]
