"""Gates: what a run must show to be worth keeping, each pass, fail or not-run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ocp_mamba.evaluation.names import COSINE, HEADLINE, P1
from ocp_mamba.evaluation.result import Evaluation, paired_difference

PASS, FAIL, NOT_RUN = "pass", "fail", "not-run"

MIN_COSINE = 0.60
MIN_TREND_EPOCHS = 3
MAX_TRAIN_MINUTES = 120.0
MIN_VARIANCE_SHARE = 0.25
MIN_TARGET_VARIANCE = 1e-6
"""Of unit rows, summed over the 768 components; rounding of equal rows gives about 1e-13."""
UNKNOWN_HASH = "unknown"


def _verdict(passed: bool | None) -> str:
    return NOT_RUN if passed is None else PASS if passed else FAIL


def cosine_gate(evaluation: Evaluation) -> str:
    """``next_vec_cosine`` is above 0.60."""
    figure = evaluation.figures.get(COSINE)
    value = figure.value if figure else None
    return _verdict(None if value is None else value > MIN_COSINE)


def trend_gate(trends: Sequence[float | None]) -> str:
    """The metric ``improvement_trend`` of the last epoch is above zero.

    The metric is the slope of the validation cosine over all epochs of the run. A run that early
    stopping ends on a plateau passes; a run that declines on the whole fails.

    Args:
        trends: the metric of each epoch; None where an epoch has none, as before 3 epochs.
    """
    last = trends[-1] if len(trends) >= MIN_TREND_EPOCHS else None
    return _verdict(None if last is None else last > 0)


def train_time_gate(minutes: float | None) -> str:
    """Training took less than two hours."""
    return _verdict(None if minutes is None else minutes < MAX_TRAIN_MINUTES)


def beats_gate(evaluation: Evaluation, baselines: Mapping[str, Evaluation], metric: str) -> str:
    """The metric exceeds every baseline's: the paired 95% interval lies above zero."""
    if evaluation.n_examples == 0 or not baselines:
        return NOT_RUN
    lows = [paired_difference(evaluation, b, metric).low for b in baselines.values()]
    return _verdict(all(low is not None and low > 0 for low in lows))


def unseen_gate(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> str:
    """On unseen transitions cosine and P@1 both exceed ridge's: paired 95% intervals above zero."""
    ridge = baselines.get("ridge")
    if ridge is None or not evaluation.strata["unseen"].any():
        return NOT_RUN
    lows = [paired_difference(evaluation, ridge, metric, "unseen").low for metric in HEADLINE]
    return _verdict(all(low is not None and low > 0 for low in lows))


def collapse_gate(evaluation: Evaluation) -> str:
    """Predictions vary, and are not all near the global mean.

    Their variance is at least a quarter of the targets', and the interval of their cosine to the
    global mean ends below the middle between the targets' own and 1, where a collapsed model is.
    """
    scalars, figures = evaluation.scalars, evaluation.figures
    ours = figures.get("cosine_to_global_mean")
    targets = figures.get("target_cosine_to_global_mean")
    if not ours or not targets or ours.high is None or targets.value is None:
        return NOT_RUN
    varied = scalars["prediction_variance"] >= MIN_VARIANCE_SHARE * scalars["target_variance"]
    return _verdict(varied and ours.high < (1 + targets.value) / 2)


def targets_gate(evaluation: Evaluation) -> str:
    """The targets differ from each other: nothing can be learnt of a single one, or shown by it."""
    variance = evaluation.scalars.get("target_variance")
    return _verdict(None if variance is None else variance > MIN_TARGET_VARIANCE)


def same_encoder(trained_on: Mapping[str, object], bank: Mapping[str, object]) -> bool | None:
    """Whether two encoders have the same weights; None where a hash is unknown."""
    hashes = [str(e.get("weight_hash", UNKNOWN_HASH)) for e in (trained_on, bank)]
    return None if UNKNOWN_HASH in hashes else hashes[0] == hashes[1]


def encoder_gate(same: bool | None, parity_checked: bool) -> str:
    """Model and bank are of one encoder: by their hashes, else by the parity of a live encoder."""
    return _verdict(True if same is None and parity_checked else same)


def leak_gate(leaks: bool | None) -> str:
    """No example's context and target stand in two splits."""
    return _verdict(None if leaks is None else not leaks)


def evaluate_gates(
    evaluation: Evaluation,
    baselines: Mapping[str, Evaluation],
    *,
    trends: Sequence[float | None] = (),
    train_minutes: float | None = None,
    inference_ready: bool | None = None,
    leaks: bool | None = None,
    same_encoder: bool | None = None,
) -> dict[str, str]:
    """Return every gate's verdict by name; what was not given is ``not-run``.

    Args:
        evaluation: of the model.
        baselines: of the same examples, by name; ``ridge`` among them for ``unseen_beats_ridge``.
        trends: the metric ``improvement_trend`` of each epoch, None where it has none.
        train_minutes: what training took.
        inference_ready: whether the saved file predicts what the model does.
        leaks: whether an example stands in two splits.
        same_encoder: whether model and bank are of one encoder, by their hashes.
    """
    return {
        "next_vec_cosine": cosine_gate(evaluation),
        "improvement_trend": trend_gate(trends),
        "train_time": train_time_gate(train_minutes),
        "inference_ready": _verdict(inference_ready),
        "beats_baselines_cosine": beats_gate(evaluation, baselines, COSINE),
        "beats_baselines_p1": beats_gate(evaluation, baselines, P1),
        "unseen_beats_ridge": unseen_gate(evaluation, baselines),
        "not_collapsed": collapse_gate(evaluation),
        "targets_vary": targets_gate(evaluation),
        "no_encoder_mismatch": encoder_gate(same_encoder, evaluation.parity is not None),
        "no_leak": leak_gate(leaks),
    }


def failed(verdicts: Mapping[str, str]) -> list[str]:
    """Return the names of the gates that failed."""
    return [name for name, verdict in verdicts.items() if verdict == FAIL]
