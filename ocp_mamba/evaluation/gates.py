"""Gates: what a run must show to be worth keeping, each pass, fail or not-run, with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.causality import TOLERANCE
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError
from ocp_mamba.evaluation.names import COSINE, LABELS, P1
from ocp_mamba.evaluation.result import Evaluation, paired_difference
from ocp_mamba.stats import Figure

PASS, FAIL, NOT_RUN = "pass", "fail", "not-run"

MIN_EXAMPLES = 30
"""Fewest sequences on which anything is said of a predictor."""
MIN_COSINE = 0.60
MIN_TREND_EPOCHS = 3
MAX_TRAIN_MINUTES = 120.0
MIN_VARIANCE_SHARE = 0.25
MIN_TARGET_VARIANCE = 1e-6
"""Of unit rows, summed over the 768 components; rounding of equal rows gives about 1e-13."""
MIN_CONCEPT_SHARE = 0.25
"""Fewest different concepts nearest to the predictions, as a share of the different targets."""
UNKNOWN_HASH = "unknown"


class Verdict(str):
    """``pass``, ``fail`` or ``not-run``, with what it rests on in words.

    Attributes:
        value: what was found; empty where nothing was computed.
        threshold: what is wanted.
        reason: what a person should know of it: how many sequences, or why it did not run.
    """

    value: str
    threshold: str
    reason: str

    def __new__(
        cls, passed: bool | None, value: str = "", threshold: str = "", reason: str = ""
    ) -> Verdict:
        """Make a verdict; None is ``not-run``."""
        made = super().__new__(cls, NOT_RUN if passed is None else PASS if passed else FAIL)
        made.value, made.threshold, made.reason = value, threshold, reason
        return made

    def to_dict(self) -> dict[str, str]:
        """Return it as plain JSON."""
        return {
            "verdict": str(self),
            "value": self.value,
            "threshold": self.threshold,
            "reason": self.reason,
        }


def as_verdict(verdict: str) -> Verdict:
    """Return a verdict with its words; one that is a bare string has none."""
    if isinstance(verdict, Verdict):
        return verdict
    return Verdict({PASS: True, FAIL: False}.get(verdict))


def _too_few(n: int, threshold: str, what: str = "sequences") -> Verdict | None:
    """``not-run`` where there is too little to say anything of a predictor."""
    if n >= MIN_EXAMPLES:
        return None
    return Verdict(None, "", threshold, f"n = {n} {what}, at least {MIN_EXAMPLES} are needed")


def cosine_gate(evaluation: Evaluation) -> Verdict:
    """``next_vec_cosine`` is above 0.60."""
    threshold = f"> {MIN_COSINE:.2f}"
    figure = evaluation.figures.get(COSINE)
    if few := _too_few(figure.n if figure else 0, threshold):
        return few
    assert figure is not None
    assert figure.value is not None
    n = f"n = {figure.n:,}, interval {figure.interval()}"
    return Verdict(figure.value > MIN_COSINE, f"{figure.value:.4f}", threshold, n)


def trend_gate(trends: Sequence[float | None]) -> Verdict:
    """The metric ``improvement_trend`` of the last epoch is above zero.

    The metric is the slope of the validation cosine over all epochs of the run. A run that early
    stopping ends on a plateau passes; a run that declines on the whole fails.

    Args:
        trends: the metric of each epoch; None where an epoch has none, as before 3 epochs.
    """
    last = trends[-1] if len(trends) >= MIN_TREND_EPOCHS else None
    if last is None:
        found = f"{len(trends)} epochs" if trends else "not a training"
        return Verdict(None, "", "> 0", f"{found}, at least {MIN_TREND_EPOCHS} epochs are needed")
    return Verdict(last > 0, f"{last:+.4f}", "> 0", f"slope over {len(trends)} epochs")


def train_time_gate(minutes: float | None) -> Verdict:
    """Training took less than two hours."""
    threshold = f"< {MAX_TRAIN_MINUTES:.0f} min"
    if minutes is None:
        return Verdict(None, "", threshold, "not a training")
    return Verdict(minutes < MAX_TRAIN_MINUTES, f"{minutes:.1f} min", threshold)


def ready_gate(ready: bool | None) -> Verdict:
    """The saved file predicts what the model does."""
    if ready is None:
        return Verdict(None, "", "same predictions", "only a training compares file and model")
    found = "same" if ready else "other"
    return Verdict(
        ready, f"{found} predictions", "same predictions", "the saved file, loaded again"
    )


def beats_gate(evaluation: Evaluation, baselines: Mapping[str, Evaluation], metric: str) -> Verdict:
    """The metric exceeds every baseline's: the paired 95% interval lies above zero."""
    if not baselines:
        return Verdict(None, "", _LEAD, "no such baseline was evaluated")
    return _leads(evaluation, baselines, {"": metric}, None)


def unseen_gate(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> Verdict:
    """On unseen transitions cosine and P@1 both exceed ridge's: paired 95% intervals above zero."""
    exposure = evaluation.exposure
    if not exposure.proven:
        return Verdict(None, "", _LEAD, exposure.words)
    if "ridge" not in baselines:
        return Verdict(None, "", _LEAD, "ridge was not evaluated")
    ridge = {"ridge": baselines["ridge"]}
    return _leads(evaluation, ridge, {f"{k} ": m for k, m in LABELS.items()}, "unseen")


_LEAD = "interval > 0"


def _leads(
    evaluation: Evaluation,
    others: Mapping[str, Evaluation],
    by: Mapping[str, str],
    stratum: str | None,
) -> Verdict:
    """Whether the model's lead over each other one, in each metric, has an interval above zero."""
    n = evaluation.n_examples if stratum is None else int(evaluation.strata[stratum].sum())
    if few := _too_few(n, _LEAD, f"{stratum} transitions" if stratum else "sequences"):
        return few
    leads = {
        (name, label): paired_difference(evaluation, other, metric, stratum)
        for name, other in others.items()
        for label, metric in by.items()
    }
    behind = [key for key, lead in leads.items() if lead.low is None or lead.low <= 0]
    (name, label), least = min(leads.items(), key=lambda item: item[1].value or 0.0)
    value = f"{label}{least.text('+.4f')}"
    reason = f"n = {n:,}; least lead, over {name}"
    if behind:
        reason += f"; not ahead of {', '.join(dict.fromkeys(name for name, _ in behind))}"
    return Verdict(not behind, value, _LEAD, reason)


def collapse_gate(evaluation: Evaluation) -> Verdict:
    """Predictions vary, are near many different concepts, and are not all near the global mean.

    Their variance is at least a quarter of the targets'. The concepts nearest to them are at least
    a quarter as many as there are different targets. And the interval of their cosine to the global
    mean ends below the middle between the targets' own and 1, where a collapsed model is.
    """
    scalars, figures = evaluation.scalars, evaluation.figures
    threshold = (
        f"variance >= {MIN_VARIANCE_SHARE:.0%} and concepts >= {MIN_CONCEPT_SHARE:.0%} of the "
        "targets'"
    )
    if few := _too_few(evaluation.n_examples, threshold):
        return few
    ours: Figure | None = figures.get("cosine_to_global_mean")
    targets: Figure | None = figures.get("target_cosine_to_global_mean")
    if not ours or not targets or ours.high is None or targets.value is None:
        return Verdict(None, "", threshold, "no mean train target, or no interval of one family")
    share = scalars["prediction_variance"] / max(scalars["target_variance"], np.finfo(float).tiny)
    concepts = scalars["predicted_concepts"] / scalars["target_concepts"]
    limit = (1 + targets.value) / 2
    value = (
        f"variance {share:.0%}, concepts {scalars['predicted_concepts']:,.0f} of "
        f"{scalars['target_concepts']:,.0f}"
    )
    reason = f"n = {evaluation.n_examples:,}; cosine to the mean target {ours}, below {limit:.2f}"
    varied = share >= MIN_VARIANCE_SHARE and concepts >= MIN_CONCEPT_SHARE
    return Verdict(varied and ours.high < limit, value, threshold, reason)


def causal_gate(evaluation: Evaluation) -> Verdict:
    """A prediction is the same whether or not the chain that goes on after its context is there."""
    threshold, found = f"<= {TOLERANCE:g}", evaluation.causality
    if found is None or found.n == 0:
        return Verdict(None, "", threshold, "no chain goes on after a context: nothing to see")
    return Verdict(
        found.holds,
        f"{found.largest:.2g}",
        threshold,
        f"largest 1 - cosine of whole chain and context alone, n = {found.n:,}",
    )


def targets_gate(evaluation: Evaluation) -> Verdict:
    """The targets differ from each other: nothing can be learnt of a single one, or shown by it."""
    threshold = f"variance > {MIN_TARGET_VARIANCE:g}"
    variance = evaluation.scalars.get("target_variance")
    if variance is None:
        return Verdict(None, "", threshold, "no targets")
    reason = f"variance of the targets, n = {evaluation.n_examples:,}"
    return Verdict(variance > MIN_TARGET_VARIANCE, f"{variance:.3g}", threshold, reason)


def same_encoder(trained_on: Mapping[str, object], bank: Mapping[str, object]) -> bool | None:
    """Whether two encoders have the same weights; None where a hash is unknown."""
    hashes = [str(e.get("weight_hash", UNKNOWN_HASH)) for e in (trained_on, bank)]
    return None if UNKNOWN_HASH in hashes else hashes[0] == hashes[1]


def require_one_encoder(model: str, trained_on: Mapping[str, object], dataset: Dataset) -> None:
    """Refuse a model that was trained on other vectors than the bank's, by the weights' hashes.

    Raises:
        EncoderMismatchError: the hashes are known and differ.
    """
    bank = dataset.meta.get("encoder", {})
    if same_encoder(trained_on, bank) is False:
        raise EncoderMismatchError(
            f"encoder mismatch: {model} was trained on vectors of {trained_on.get('name')} "
            f"(weights {str(trained_on['weight_hash'])[:12]}), the bank's are of "
            f"{bank.get('name')} (weights {str(bank['weight_hash'])[:12]}); retrieval between them "
            "means nothing"
        )


def encoder_gate(same: bool | None, parity_checked: bool) -> Verdict:
    """Model and bank are of one encoder: by their hashes, else by the parity of a live encoder."""
    if same is None and parity_checked:
        return Verdict(True, "same", "same", "the bank's texts, encoded again, match it")
    if same is None:
        return Verdict(None, "", "same", "the hash of an encoder's weights is not known")
    return Verdict(same, "same" if same else "another", "same", "hashes of the encoders' weights")


def dataset_leak_gate(leaks: bool) -> Verdict:
    """No example's context and target stand in two splits of a dataset."""
    return Verdict(not leaks, "some" if leaks else "0", "0", "examples in two splits")


def leak_gate(evaluation: Evaluation, leaks: bool | None) -> Verdict:
    """The predictor learnt none of the evaluated examples, and none stands in two splits.

    Args:
        evaluation: knows what the predictor learnt from, see `Exposure`.
        leaks: whether the evaluated dataset has an example in two splits.
    """
    found, n = evaluation.exposure, evaluation.n_examples
    threshold = f"<= {found.by_error}" if found.by_error else "0"
    value = "" if found.learnt is None else f"{found.learnt:,} learnt"
    if found.learnt is not None and found.learnt > found.by_error:
        reason = f"it learnt {found.learnt:,} of the {n:,} evaluated sequences, answer included"
        return Verdict(False, value, threshold, reason)
    if leaks:
        return Verdict(False, "in two splits", "0", "examples of this dataset stand in two splits")
    if not found.proven:
        return Verdict(None, value, threshold, found.words)
    if leaks is None:
        return Verdict(None, value, threshold, "the dataset was not searched for leaks")
    return Verdict(True, value or "0", threshold, f"n = {n:,}; learnt from {found.words}")


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
    """Return every gate's `Verdict` by name; what was not given is ``not-run``.

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
        "inference_ready": ready_gate(inference_ready),
        "beats_baselines_cosine": beats_gate(evaluation, baselines, COSINE),
        "beats_baselines_p1": beats_gate(evaluation, baselines, P1),
        "unseen_beats_ridge": unseen_gate(evaluation, baselines),
        "not_collapsed": collapse_gate(evaluation),
        "targets_vary": targets_gate(evaluation),
        "causal": causal_gate(evaluation),
        "no_encoder_mismatch": encoder_gate(same_encoder, evaluation.parity is not None),
        "no_leak": leak_gate(evaluation, leaks),
    }


def failed(verdicts: Mapping[str, str]) -> list[str]:
    """Return the names of the gates that failed."""
    return [name for name, verdict in verdicts.items() if verdict == FAIL]
