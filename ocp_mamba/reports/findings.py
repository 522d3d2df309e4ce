"""What the metrics of an evaluation mean, in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.names import COSINE, LABELS, P1
from ocp_mamba.evaluation.result import Evaluation, paired_difference
from ocp_mamba.stats import Figure

GOOD, BAD, OPEN = "good", "bad", "open"
COPIES_FROM = 0.5
"""Share of predictions nearest to their own input from which a predictor is said to copy."""
EPS = 1e-12


@dataclass(frozen=True)
class Statement:
    """A question, its short answer, the answer in a sentence, the numbers, and `GOOD` or `BAD`."""

    question: str
    answer: str
    sentence: str
    evidence: str
    tone: str


def differences(
    evaluation: Evaluation,
    baselines: Mapping[str, Evaluation],
    metric: str,
    stratum: str | None = None,
) -> dict[str, Figure]:
    """Return the model minus each baseline, paired, with its interval by family.

    Args:
        evaluation: of the model.
        baselines: evaluations over the same examples.
        metric: a name of ``per_example``.
        stratum: a stratum's name; None for all examples.

    Raises:
        ValueError: a baseline was not evaluated on the same data with the same definitions.
    """
    return {n: paired_difference(evaluation, b, metric, stratum) for n, b in baselines.items()}


def outcome(difference: Figure) -> str:
    """``beats`` where the interval is above zero, ``loses to`` where below, else ``ties with``."""
    if difference.low is not None and difference.low > 0:
        return "beats"
    return "loses to" if difference.high is not None and difference.high < 0 else "ties with"


def statements(
    evaluation: Evaluation, baselines: Mapping[str, Evaluation], dataset: Dataset
) -> list[Statement]:
    """Answer: does it learn, beat the baselines, generalize, copy its input, collapse?

    Raises:
        ValueError: a baseline was not evaluated on the same data with the same definitions.
    """
    if evaluation.n_examples == 0:
        return []
    found = [_headline(evaluation)]
    for label, metric in LABELS.items():
        gains = differences(evaluation, baselines, metric)
        found += _against(gains, f"Better than the baselines on {label}?", label, "")
    if evaluation.strata["unseen"].any():
        for label, metric in LABELS.items():
            gains = differences(evaluation, baselines, metric, "unseen")
            question = f"Better on unseen transitions, {label}?"
            found += _against(gains, question, label, "on unseen transitions ")
        found.append(_generalizes(evaluation))
    return [*found, _copies(evaluation, dataset), _collapsed(evaluation, dataset)]


def _headline(evaluation: Evaluation) -> Statement:
    cosine, p1 = evaluation.figures[COSINE], evaluation.figures[P1]
    assert p1.value is not None
    learned = p1.low is not None and p1.low > evaluation.chance_p1
    return Statement(
        "Does it find the next concept?",
        f"{p1.value:.1%} of the time",
        f"It finds the next concept in {p1.value:.1%} of cases "
        f"(by chance: {evaluation.chance_p1:.2%}).",
        f"Over {evaluation.n_examples:,} sequences of the {evaluation.split} split, the predicted "
        f"vector has a cosine of {cosine} to the true next vector. The true concept is the nearest "
        f"of {evaluation.pool_size:,} concepts with a rate of {p1}.",
        GOOD if learned else BAD,
    )


def _against(gains: Mapping[str, Figure], question: str, label: str, where: str) -> list[Statement]:
    """One statement: on the baselines that are not beaten, or that all are."""
    if not gains:
        return []
    strongest = min(gains, key=lambda name: gains[name].value or 0.0)
    verdicts = {name: outcome(gain) for name, gain in gains.items()}
    beaten = [name for name, verdict in verdicts.items() if verdict == "beats"]
    numbers = f"Against {strongest}, the strongest baseline: {gains[strongest].text('+.3f')}."
    if len(beaten) == len(gains):
        sentence = f"On {label} {where}it beats every baseline."
        return [Statement(question, "yes, all", sentence, numbers, GOOD)]
    lost = [name for name, verdict in verdicts.items() if verdict == "loses to"]
    tied = [name for name, verdict in verdicts.items() if verdict == "ties with"]
    parts = [f"beats {listed(beaten)}"] if beaten else []
    parts += [f"does not differ clearly from {listed(tied)}"] if tied else []
    parts += [f"loses to {listed(lost)}"] if lost else []
    answer = f"no, {'loses to' if lost else 'ties with'} {listed(lost or tied)}"
    sentence = f"On {label} {where}it {listed(parts)}."
    return [Statement(question, answer, sentence, numbers, BAD)]


def _generalizes(evaluation: Evaluation) -> Statement:
    parts = {
        (stratum, metric): evaluation.figures[f"{stratum}/{metric}"].value
        for stratum in ("seen", "unseen")
        for metric in (COSINE, P1)
    }
    seen, unseen = parts["seen", P1], parts["unseen", P1]
    if seen is None or unseen is None:
        return Statement(
            "Does it generalize to new transitions?",
            "unknown",
            "Whether it generalizes to new transitions is unknown.",
            "The split has no transition that training contained, or none that it did not.",
            OPEN,
        )
    return Statement(
        "Does it generalize to new transitions?",
        f"P@1 {unseen:.1%}, seen {seen:.1%}",
        f"It is right in {seen:.1%} of the transitions that training contained, and in "
        f"{unseen:.1%} of new ones.",
        f"Where training contained the transition, cosine is {parts['seen', COSINE]:.3f} and P@1 "
        f"{seen:.1%}; where it did not, {parts['unseen', COSINE]:.3f} and {unseen:.1%}.",
        OPEN if unseen < seen / 2 else GOOD,
    )


def _copies(evaluation: Evaluation, dataset: Dataset) -> Statement:
    last = dataset.examples(evaluation.split).last
    share = float((evaluation.found[:, 0] == last).mean())
    return Statement(
        "Does it copy its input?",
        "yes" if share > COPIES_FROM else "no",
        "It copies its input." if share > COPIES_FROM else "It does not copy its input.",
        f"Its prediction is nearest to the last concept of its own context in {share:.1%} of "
        "cases.",
        BAD if share > COPIES_FROM else GOOD,
    )


def _collapsed(evaluation: Evaluation, dataset: Dataset) -> Statement:
    """The verdict of `gates.collapse_gate`, so that page and gates never differ."""
    verdict = gates.collapse_gate(evaluation)
    answer, sentence, tone = {
        gates.FAIL: ("yes", "It has collapsed towards one prediction.", BAD),
        gates.PASS: ("no", "It has not collapsed.", GOOD),
        gates.NOT_RUN: ("unknown", "Whether it has collapsed is unknown.", OPEN),
    }[verdict]
    truth = dataset.examples(evaluation.split).target
    share = evaluation.scalars["prediction_variance"] / max(
        evaluation.scalars["target_variance"], EPS
    )
    mean = evaluation.figures.get("cosine_to_global_mean")
    return Statement(
        "Has it collapsed?",
        answer,
        sentence,
        f"Its predictions have {share:.0%} of the targets' variance (below "
        f"{gates.MIN_VARIANCE_SHARE:.0%} is collapse) and a cosine of "
        f"{mean or 'unknown size'} to the mean train target. Their nearest concepts are "
        f"{len(np.unique(evaluation.found[:, 0])):,} different ones; the true next concepts are "
        f"{len(np.unique(truth)):,}.",
        tone,
    )


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
