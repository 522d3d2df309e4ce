"""Gates: what a run must show to be worth keeping, each pass, fail or not-run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ocp_mamba import metrics
from ocp_mamba.evaluate import Evaluation, paired_difference

PASS, FAIL, NOT_RUN = "pass", "fail", "not-run"

MIN_COSINE = 0.60
MIN_TREND_EPOCHS = 3
MAX_TRAIN_MINUTES = 120.0


def _verdict(passed: bool | None) -> str:
    return NOT_RUN if passed is None else PASS if passed else FAIL


def cosine_gate(evaluation: Evaluation) -> str:
    """``next_vec_cosine`` is above 0.60."""
    figure = evaluation.figures.get("next_vec_cosine")
    value = figure.value if figure else None
    return _verdict(None if value is None else value > MIN_COSINE)


def trend_gate(cosines: Sequence[float]) -> str:
    """The least-squares slope of validation cosine over all epochs is above zero (3 or more)."""
    if len(cosines) < MIN_TREND_EPOCHS:
        return NOT_RUN
    slope = metrics.slope(cosines)
    return _verdict(None if slope is None else slope > 0)


def train_time_gate(minutes: float | None) -> str:
    """Training took less than two hours."""
    return _verdict(None if minutes is None else minutes < MAX_TRAIN_MINUTES)


def beats_gate(evaluation: Evaluation, baselines: Mapping[str, Evaluation], metric: str) -> str:
    """The metric exceeds every baseline's: the paired 95% interval lies above zero."""
    if evaluation.n_examples == 0 or not baselines:
        return NOT_RUN
    lows = [paired_difference(evaluation, b, metric).low for b in baselines.values()]
    return _verdict(all(low is not None and low > 0 for low in lows))


def leak_gate(leaks: bool | None) -> str:
    """No example's context and target stand in two splits."""
    return _verdict(None if leaks is None else not leaks)


def judge(
    evaluation: Evaluation,
    baselines: Mapping[str, Evaluation],
    *,
    cosines: Sequence[float] = (),
    train_minutes: float | None = None,
    inference_ready: bool | None = None,
    leaks: bool | None = None,
) -> dict[str, str]:
    """Return every gate's verdict by name; what was not given is ``not-run``."""
    return {
        "next_vec_cosine": cosine_gate(evaluation),
        "improvement_trend": trend_gate(cosines),
        "train_time": train_time_gate(train_minutes),
        "inference_ready": _verdict(inference_ready),
        "beats_baselines_cosine": beats_gate(evaluation, baselines, "next_vec_cosine"),
        "beats_baselines_p1": beats_gate(evaluation, baselines, "faiss_retrieval_p1"),
        "no_leak": leak_gate(leaks),
    }
