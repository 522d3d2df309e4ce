"""Each gate at its limit, one step beyond it, and where it has too little; with what it says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from data_maker import make_dataset

from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.causality import TOLERANCE, Causality
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError, Parity
from ocp_mamba.evaluation.exposure import Exposure
from ocp_mamba.evaluation.names import COSINE, P1
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.stats import Figure, bootstrap_mean


def numbers(n: int = 40, cosine: float = 0.7, p1: float = 0.5, **changed: Any) -> Evaluation:
    """An evaluation of ``n`` sequences, each a family of its own, with the same numbers."""
    per_example = {COSINE: np.full(n, cosine), P1: np.full(n, p1)}
    groups = np.arange(n)
    figures = {k: bootstrap_mean(v, groups) for k, v in per_example.items()}
    figures["cosine_to_global_mean"] = Figure(0.2, 0.1, 0.3, n)
    figures["target_cosine_to_global_mean"] = Figure(0.2, 0.1, 0.3, n)
    fields: dict[str, Any] = {
        "predictor": "it",
        "split": "val",
        "dataset_fingerprint": "a" * 64,
        "metrics_version": "4",
        "n_examples": n,
        "n_chains": n,
        "n_families": n,
        "pool_size": 100,
        "chance_p1": 0.01,
        "index": "exact",
        "echo_encoder": "bank",
        "parity": None,
        "figures": figures,
        "per_example": per_example,
        "chains": groups,
        "families": groups,
        "found": np.zeros((n, 10), np.int64),
        "strata": {"unseen": np.ones(n, bool)},
        "scalars": {
            "prediction_variance": 0.5,
            "target_variance": 1.0,
            "predicted_concepts": 1500.0,
            "target_concepts": 2000.0,
        },
    }
    return Evaluation(**fields | changed)


def said(verdict: gates.Verdict) -> tuple[str, str, str, str]:
    assert list(verdict.to_dict()) == ["verdict", "value", "threshold", "reason"]
    return str(verdict), verdict.value, verdict.threshold, verdict.reason


def few(n: int, threshold: str, what: str = "sequences") -> tuple[str, str, str, str]:
    return "not-run", "", threshold, f"n = {n} {what}, at least 30 are needed"


@pytest.mark.parametrize(("value", "verdict"), [(0.6, "fail"), (0.6001, "pass"), (-0.2, "fail")])
def test_cosine_must_be_above_its_limit(value: float, verdict: str) -> None:
    figure = {COSINE: Figure(value, value - 0.1, value + 0.1, 1234)}
    interval = f"[{value - 0.1:.3f}, {value + 0.1:.3f}]"
    wanted = (verdict, f"{value:.4f}", "> 0.60", f"n = 1,234, interval {interval}")
    assert said(gates.cosine_gate(numbers(figures=figure))) == wanted


def test_thirty_sequences_are_enough_and_fewer_are_not() -> None:
    assert gates.cosine_gate(numbers(30)) == "pass"
    assert said(gates.cosine_gate(numbers(29))) == few(29, "> 0.60")
    assert said(gates.cosine_gate(numbers(figures={}))) == few(0, "> 0.60")
    assert gates.collapse_gate(numbers(30)) == "pass"
    threshold = "variance >= 25% and concepts >= 25% of the targets'"
    assert said(gates.collapse_gate(numbers(29))) == few(29, threshold)
    better = numbers(30, cosine=0.8, p1=0.6)
    assert gates.beats_gate(better, {"a": numbers(30)}, COSINE) == "pass"
    nothing = gates.beats_gate(numbers(29), {"a": numbers(29, cosine=0.1)}, COSINE)
    assert said(nothing) == few(29, "interval > 0")
    strata = {"unseen": np.arange(40) < 29}
    unseen = gates.unseen_gate(numbers(strata=strata), {"ridge": numbers()})
    assert said(unseen) == few(29, "interval > 0", "unseen transitions")


@pytest.mark.parametrize(
    ("trends", "wanted"),
    [
        ([], ("not-run", "", "> 0", "not a training, at least 3 epochs are needed")),
        ([None, 0.5], ("not-run", "", "> 0", "2 epochs, at least 3 epochs are needed")),
        ([None] * 4, ("not-run", "", "> 0", "4 epochs, at least 3 epochs are needed")),
        ([None, -0.5, 0.25], ("pass", "+0.2500", "> 0", "slope over 3 epochs")),
        ([0.5, 0.5, 0.5, 0.0], ("fail", "+0.0000", "> 0", "slope over 4 epochs")),
        ([0.5, 0.5, -0.125], ("fail", "-0.1250", "> 0", "slope over 3 epochs")),
    ],
)
def test_the_trend_must_be_above_zero(trends: list[float | None], wanted: tuple[str, ...]) -> None:
    assert said(gates.trend_gate(trends)) == wanted


def test_a_training_takes_less_than_two_hours() -> None:
    assert said(gates.train_time_gate(None)) == ("not-run", "", "< 120 min", "not a training")
    assert said(gates.train_time_gate(119.94)) == ("pass", "119.9 min", "< 120 min", "")
    assert gates.train_time_gate(120.0) == "fail"
    assert gates.train_time_gate(121.0) == "fail"


def test_the_saved_file_must_predict_the_same() -> None:
    why = "the saved file, loaded again"
    assert said(gates.ready_gate(True)) == ("pass", "same predictions", "same predictions", why)
    assert said(gates.ready_gate(False)) == ("fail", "other predictions", "same predictions", why)
    alone = "only a training compares file and model"
    assert said(gates.ready_gate(None)) == ("not-run", "", "same predictions", alone)


def test_a_tie_with_a_baseline_is_no_lead() -> None:
    ours = numbers()
    verdict = gates.beats_gate(ours, {"twin": numbers()}, COSINE)
    reason = "n = 40; least lead, over twin; not ahead of twin"
    assert said(verdict) == ("fail", "+0.0000 [+0.0000, +0.0000]", "interval > 0", reason)
    nobody = gates.beats_gate(ours, {}, COSINE)
    assert said(nobody) == ("not-run", "", "interval > 0", "no such baseline was evaluated")


def test_every_baseline_must_be_beaten_and_the_least_lead_is_named() -> None:
    others = {"far": numbers(cosine=0.45), "near": numbers(cosine=0.575), "top": numbers(cosine=1)}
    beaten = {name: others[name] for name in ("far", "near")}
    verdict = gates.beats_gate(numbers(1200), {k: numbers(1200, cosine=0.575) for k in "a"}, COSINE)
    assert verdict.reason == "n = 1,200; least lead, over a"
    verdict = gates.beats_gate(numbers(), beaten, COSINE)
    value = "+0.1250 [+0.1250, +0.1250]"
    assert said(verdict) == ("pass", value, "interval > 0", "n = 40; least lead, over near")
    verdict = gates.beats_gate(numbers(), others, COSINE)
    assert verdict == "fail"
    assert verdict.reason == "n = 40; least lead, over top; not ahead of top"
    two = others | {"same": numbers()}
    assert gates.beats_gate(numbers(), two, COSINE).reason.endswith("not ahead of top, same")
    assert gates.beats_gate(numbers(), beaten, P1) == "fail", "cosine alone is ahead"


def test_one_family_gives_no_interval_and_so_no_lead() -> None:
    one = np.zeros(40, np.int64)
    ours = numbers(families=one)
    verdict = gates.beats_gate(ours, {"a": numbers(cosine=0.1)}, COSINE)
    assert (str(verdict), verdict.value) == ("fail", "+0.6000 [no interval]")


def test_unseen_needs_both_metrics_ridge_and_a_proof() -> None:
    ridge = {"ridge": numbers(cosine=0.6, p1=0.25), "other": numbers(cosine=0.9, p1=0.9)}
    verdict = gates.unseen_gate(numbers(), ridge)
    value = "cosine +0.1000 [+0.1000, +0.1000]"
    assert said(verdict) == ("pass", value, "interval > 0", "n = 40; least lead, over ridge")
    both = gates.unseen_gate(numbers(cosine=0.5, p1=0.125), ridge)
    assert both == "fail"
    assert both.reason == "n = 40; least lead, over ridge; not ahead of ridge"
    lagging = gates.unseen_gate(numbers(p1=0.25), ridge)
    assert (str(lagging), lagging.value) == ("fail", "P@1 +0.0000 [+0.0000, +0.0000]")
    absent = gates.unseen_gate(numbers(), {"other": ridge["other"]})
    assert said(absent) == ("not-run", "", "interval > 0", "ridge was not evaluated")
    unproven = numbers(exposure=Exposure("who knows", proven=False))
    assert said(gates.unseen_gate(unproven, ridge)) == ("not-run", "", "interval > 0", "who knows")


def test_unseen_looks_at_the_unseen_ones_alone() -> None:
    ahead = np.where(np.arange(80) < 40, 0.9, 0.1)
    ours = numbers(80, per_example={COSINE: ahead, P1: ahead}, strata={"unseen": ahead > 0.5})
    assert gates.unseen_gate(ours, {"ridge": numbers(80)}) == "pass"
    ours = replace(ours, strata={"unseen": ahead < 0.5})
    assert gates.unseen_gate(ours, {"ridge": numbers(80)}) == "fail"


def collapse(n: int = 40, **changed: Any) -> gates.Verdict:
    base = numbers(n)
    figures = {k: v for k, v in changed.items() if isinstance(v, Figure) or v is None}
    scalars = {k: v for k, v in changed.items() if k not in figures}
    kept = {k: v for k, v in (base.figures | figures).items() if v is not None}
    return gates.collapse_gate(replace(base, figures=kept, scalars=base.scalars | scalars))


def test_collapse_at_each_limit() -> None:
    threshold = "variance >= 25% and concepts >= 25% of the targets'"
    reason = "n = 1,040; cosine to the mean target 0.200 [0.100, 0.300], below 0.60"
    value = "variance 50%, concepts 1,500 of 2,000"
    assert said(collapse(1040)) == ("pass", value, threshold, reason)
    assert collapse(prediction_variance=0.25) == "pass"
    assert collapse(prediction_variance=0.2499) == "fail"
    assert collapse(predicted_concepts=500.0) == "pass"
    assert collapse(predicted_concepts=499.0) == "fail"
    assert collapse(cosine_to_global_mean=Figure(0.2, 0.1, 0.6, 40)) == "fail"
    assert collapse(cosine_to_global_mean=Figure(0.2, 0.1, 0.599, 40)) == "pass"
    nothing = "no mean train target, or no interval of one family"
    for missing in (
        {"cosine_to_global_mean": None},
        {"target_cosine_to_global_mean": None},
        {"cosine_to_global_mean": Figure(0.2, None, None, 40)},
        {"target_cosine_to_global_mean": Figure(None, None, None, 0)},
    ):
        assert said(collapse(**missing)) == ("not-run", "", threshold, nothing)


def test_targets_without_variance_do_not_divide_by_zero() -> None:
    assert collapse(target_variance=0.0, prediction_variance=0.0) == "fail"
    assert collapse(target_variance=0.0, prediction_variance=0.1) == "pass"


def test_causality_at_its_tolerance() -> None:
    nothing = "no chain goes on after a context: nothing to see"
    for absent in (None, Causality(0, 0.0)):
        verdict = gates.causal_gate(numbers(causality=absent))
        assert said(verdict) == ("not-run", "", "<= 0.0001", nothing)
    words = "largest 1 - cosine of whole chain and context alone, n = 1,234"
    verdict = gates.causal_gate(numbers(causality=Causality(1234, TOLERANCE)))
    assert said(verdict) == ("pass", "0.0001", "<= 0.0001", words)
    verdict = gates.causal_gate(numbers(causality=Causality(1, 1.234e-3)))
    assert said(verdict)[:2] == ("fail", "0.0012")


def test_targets_must_vary() -> None:
    threshold = "variance > 1e-06"
    assert said(gates.targets_gate(numbers(scalars={}))) == ("not-run", "", threshold, "no targets")
    for variance, verdict, value in ((1e-6, "fail", "1e-06"), (0.1234, "pass", "0.123")):
        found = gates.targets_gate(numbers(1040, scalars={"target_variance": variance}))
        reason = "variance of the targets, n = 1,040"
        assert said(found) == (verdict, value, threshold, reason)


def test_the_encoder_gate_says_what_it_rests_on() -> None:
    hashes = "hashes of the encoders' weights"
    assert said(gates.encoder_gate(True, False)) == ("pass", "same", "same", hashes)
    assert said(gates.encoder_gate(False, True)) == ("fail", "another", "same", hashes)
    live = "the bank's texts, encoded again, match it"
    assert said(gates.encoder_gate(None, True)) == ("pass", "same", "same", live)
    unknown = "the hash of an encoder's weights is not known"
    assert said(gates.encoder_gate(None, False)) == ("not-run", "", "same", unknown)


def test_a_model_of_another_encoder_is_refused_by_name_and_hash() -> None:
    ours, theirs = {"name": "a", "weight_hash": "1" * 64}, {"name": "b", "weight_hash": "2" * 64}
    data = make_dataset(meta=make_dataset().meta | {"encoder": theirs})
    with pytest.raises(EncoderMismatchError) as refused:
        gates.require_one_encoder("m.pt", ours, data)
    assert str(refused.value) == (
        "encoder mismatch: m.pt was trained on vectors of a (weights 111111111111), the bank's are "
        "of b (weights 222222222222); retrieval between them means nothing"
    )
    gates.require_one_encoder("m.pt", theirs, data)
    gates.require_one_encoder("m.pt", {"name": "a"}, data)
    nameless = make_dataset()
    nameless.meta.pop("encoder")
    gates.require_one_encoder("m.pt", ours, nameless)


def test_a_leak_in_the_dataset_fails() -> None:
    words = ("0", "examples in two splits")
    assert said(gates.dataset_leak_gate(True)) == ("fail", "some", *words)
    assert said(gates.dataset_leak_gate(False)) == ("pass", "0", *words)


def leak(leaks: bool | None, **exposure: Any) -> tuple[str, str, str, str]:
    return said(gates.leak_gate(numbers(1040, exposure=Exposure("d.npz", **exposure)), leaks))


def test_what_was_learnt_fails_beyond_the_errors_of_its_filter() -> None:
    clean = "n = 1,040; learnt from d.npz"
    assert leak(False) == ("pass", "0", "0", clean)
    assert leak(False, learnt=0) == ("pass", "0 learnt", "0", clean)
    one = "it learnt 1 of the 1,040 evaluated sequences, answer included"
    assert leak(False, learnt=1) == ("fail", "1 learnt", "0", one)
    assert leak(None, learnt=1, proven=False)[0] == "fail", "what a caller says can fail it"
    assert leak(False, learnt=3, by_error=3) == ("pass", "3 learnt", "<= 3", clean)
    many = "it learnt 1,004 of the 1,040 evaluated sequences, answer included"
    assert leak(False, learnt=1004, by_error=3) == ("fail", "1,004 learnt", "<= 3", many)


def test_a_leak_between_splits_fails_whatever_was_learnt() -> None:
    both = ("fail", "in two splits", "0", "examples of this dataset stand in two splits")
    assert leak(True) == leak(True, learnt=0, by_error=3) == leak(True, proven=False) == both
    searched = "the dataset was not searched for leaks"
    assert leak(None, learnt=2, by_error=2) == ("not-run", "2 learnt", "<= 2", searched)
    assert leak(False, learnt=0, proven=False) == ("not-run", "0 learnt", "0", "d.npz")


def test_each_gate_is_asked_about_its_own_fact() -> None:
    facts: dict[str, Any] = {
        "trends": [None, 0.1, 0.1], "train_minutes": 5.0, "inference_ready": True, "leaks": False,
        "same_encoder": True,
    }  # fmt: skip
    ours = numbers(causality=Causality(9, 0.0))
    others = {"ridge": numbers(cosine=0.6, p1=0.4)}
    found = gates.evaluate_gates(ours, others, **facts)
    assert set(found.values()) == {"pass"}
    assert list(found) == [
        "next_vec_cosine", "improvement_trend", "train_time", "inference_ready",
        "beats_baselines_cosine", "beats_baselines_p1", "unseen_beats_ridge", "not_collapsed",
        "targets_vary", "causal", "no_encoder_mismatch", "no_leak",
    ]  # fmt: skip
    unknown = facts | {"same_encoder": None}
    assert gates.evaluate_gates(ours, others, **unknown)["no_encoder_mismatch"] == "not-run"
    live = replace(ours, parity=Parity("e", 64, 1.0, 1.0))
    assert gates.evaluate_gates(live, others, **unknown)["no_encoder_mismatch"] == "pass"
    assert all(type(verdict) is gates.Verdict for verdict in found.values())
    wrong = {
        "trends": ([0.1, 0.1, -0.1], "improvement_trend"),
        "train_minutes": (500.0, "train_time"),
        "inference_ready": (False, "inference_ready"),
        "leaks": (True, "no_leak"),
        "same_encoder": (False, "no_encoder_mismatch"),
    }
    for name, (value, gate) in wrong.items():
        assert gates.failed(gates.evaluate_gates(ours, others, **facts | {name: value})) == [gate]
    lagging = {
        COSINE: "beats_baselines_cosine", P1: "beats_baselines_p1",
    }  # fmt: skip
    for metric, gate in lagging.items():
        worse = replace(ours, per_example=ours.per_example | {metric: np.zeros(40)})
        assert gates.failed(gates.evaluate_gates(worse, others, **facts)) == [
            gate, "unseen_beats_ridge",
        ]  # fmt: skip


def test_a_bare_word_is_a_verdict_without_reasons() -> None:
    for word in ("pass", "fail", "not-run"):
        assert said(gates.as_verdict(word)) == (word, "", "", "")
    whole = gates.Verdict(True, "1", "> 0", "why")
    assert gates.as_verdict(whole) is whole
