"""What the metrics of an evaluation mean, in plain sentences.

Each statement says over how many sequences it is. It is good only where there are enough of them,
and where no baseline is better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.gates import MIN_EXAMPLES
from ocp_mamba.evaluation.names import COSINE, LABELS, P1
from ocp_mamba.evaluation.result import Evaluation, paired_difference
from ocp_mamba.stats import Figure

GOOD, BAD, OPEN = "good", "bad", "open"
COPIES_FROM, PARTLY_FROM = 0.5, 0.1
"""Shares of predictions nearest to their own input from which a predictor copies, or partly."""
VARIED_FROM = 0.5
"""Share of the different targets from which the concepts nearest to predictions are many."""
EPS = 1e-12


@dataclass(frozen=True)
class Statement:
    """A question, its short answer, the answer in a sentence, the numbers, and the tone.

    ``tone`` is `GOOD`, `BAD`, or `OPEN` where neither can be said.
    """

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
    """Answer: are the numbers valid, does it learn, beat the baselines, generalize, copy, collapse?

    What makes the numbers invalid stands first, and nothing else is good then.

    Raises:
        ValueError: a baseline was not evaluated on the same data with the same definitions.
    """
    if evaluation.n_examples == 0:
        return []
    valid = [_learnt_before(evaluation), _looks_ahead(evaluation)]
    found = [s for s in valid if s.tone == BAD]
    found.append(_headline(evaluation, baselines))
    for label, metric in LABELS.items():
        found += _against(evaluation, baselines, label, metric, None)
    if evaluation.strata["unseen"].any():
        for label, metric in LABELS.items():
            found += _against(evaluation, baselines, label, metric, "unseen")
    found.append(_generalizes(evaluation, baselines))
    found += [_copies(evaluation, dataset), _collapsed(evaluation, baselines)]
    if any(s.tone == BAD for s in valid):
        found = [replace(s, tone=OPEN) if s.tone == GOOD else s for s in found]
    return found + [s for s in valid if s.tone != BAD]


def _learnt_before(evaluation: Evaluation) -> Statement:
    question, exposure = "Had it learnt the answers?", evaluation.exposure
    n = f"{evaluation.n_examples:,}"
    if exposure.learnt is not None and exposure.learnt > exposure.by_error:
        return Statement(
            question,
            f"yes, {exposure.learnt:,} of {n}",
            f"It learnt {exposure.learnt:,} of the {n} evaluated sequences, answers included: its "
            "numbers do not show what it does on unseen data.",
            f"It learnt from {exposure.words}.",
            BAD,
        )
    if not exposure.proven:
        return Statement(
            question,
            "unknown",
            "Whether it had learnt the evaluated sequences is not known.",
            f"{exposure.words}.",
            OPEN,
        )
    return Statement(
        question,
        "no",
        "It had not learnt any of the evaluated sequences.",
        f"n = {n}. It learnt from {exposure.words}.",
        GOOD if evaluation.n_examples >= MIN_EXAMPLES else OPEN,
    )


def _looks_ahead(evaluation: Evaluation) -> Statement:
    """The verdict of `gates.causal_gate`, so that page and gates never differ."""
    verdict = gates.causal_gate(evaluation)
    answer, sentence, tone = {
        gates.FAIL: ("yes", "It sees what comes after a context: its numbers mean nothing.", BAD),
        gates.PASS: ("no", "It does not look ahead.", GOOD),
        gates.NOT_RUN: ("unknown", "Whether it looks ahead is not known.", OPEN),
    }[str(verdict)]
    found = f"{verdict.value}, allowed {verdict.threshold}: " if verdict.value else ""
    return Statement("Does it look ahead?", answer, sentence, f"{found}{verdict.reason}.", tone)


def _too_few(question: str, n: int, what: str) -> Statement:
    return Statement(
        question,
        f"unknown, n = {n}",
        f"There are too few {what} to say more of them (n = {n}).",
        f"n = {n} {what}; at least {MIN_EXAMPLES} are needed.",
        OPEN,
    )


def _behind(evaluation: Evaluation, baselines: Mapping[str, Evaluation], key: str) -> list[str]:
    """The baselines with a higher figure, the highest first."""
    ours = evaluation.figures[key].value
    theirs = {n: b.figures[key].value for n, b in baselines.items() if key in b.figures}
    ahead = {n: v for n, v in theirs.items() if v is not None and ours is not None and v > ours}
    return sorted(ahead, key=lambda name: -ahead[name])


def _headline(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> Statement:
    cosine, p1 = evaluation.figures[COSINE], evaluation.figures[P1]
    assert p1.value is not None
    question = "Does it find the next concept?"
    learned = p1.low is not None and p1.low > evaluation.chance_p1
    ahead = _behind(evaluation, baselines, P1)
    beside = f"by chance: {evaluation.chance_p1:.2%}"
    if ahead:
        best = baselines[ahead[0]].figures[P1]
        beside += f"; the baseline {ahead[0]}: {best.value:.1%}"
    tone = GOOD if learned and not ahead else OPEN if learned else BAD
    return Statement(
        question,
        f"{p1.value:.1%} of the time",
        f"It finds the next concept in {p1.value:.1%} of {p1.n:,} sequences ({beside}).",
        f"Over {evaluation.n_examples:,} sequences of the {evaluation.split} split, the predicted "
        f"vector has a cosine of {cosine} to the true next vector. The true concept is the nearest "
        f"of {evaluation.pool_size:,} concepts with a rate of {p1}.",
        tone if p1.n >= MIN_EXAMPLES else OPEN,
    )


def _against(
    evaluation: Evaluation,
    baselines: Mapping[str, Evaluation],
    label: str,
    metric: str,
    stratum: str | None,
) -> list[Statement]:
    """One statement: on the baselines that are not beaten, or that all are."""
    if not baselines:
        return []
    question = f"Better than the baselines on {label}?"
    where, what = "", "sequences"
    if stratum:
        question = f"Better on unseen transitions, {label}?"
        where, what = "on unseen transitions ", "unseen transitions"
    gains = differences(evaluation, baselines, metric, stratum)
    strongest = min(gains, key=lambda name: gains[name].value or 0.0)
    n = gains[strongest].n
    if n < MIN_EXAMPLES:
        return [_too_few(question, n, what)]
    by_outcome: dict[str, list[str]] = {"beats": [], "ties with": [], "loses to": []}
    for name, gain in gains.items():
        by_outcome[outcome(gain)].append(name)
    numbers = f"n = {n:,}. Minus {strongest}, the strongest: {gains[strongest].text('+.3f')}."
    if len(by_outcome["beats"]) == len(gains):
        sentence = f"On {label} {where}it beats every baseline."
        return [Statement(question, "yes, all", sentence, numbers, GOOD)]
    parts = [f"{words} {listed(names)}" for words, names in by_outcome.items() if names]
    words = "loses to" if by_outcome["loses to"] else "ties with"
    answer = f"no, {words} {listed(by_outcome[words])}"
    sentence = f"On {label} {where}it {listed(parts)}."
    return [Statement(question, answer, sentence, numbers, BAD)]


def _generalizes(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> Statement:
    question = "Does it carry over to unseen transitions?"
    if not evaluation.exposure.known:
        sentence = "Which transitions it had seen is not known."
        evidence = f"{evaluation.exposure.words}."
        return Statement(question, "unknown", sentence, evidence, OPEN)
    parts = {
        (s, m): evaluation.figures[f"{s}/{m}"] for s in ("seen", "unseen") for m in (COSINE, P1)
    }
    seen, unseen = parts["seen", P1], parts["unseen", P1]
    if unseen.n < MIN_EXAMPLES or unseen.value is None:
        return _too_few(question, unseen.n, "unseen transitions")
    sentence = f"It is right in {unseen.value:.1%} of {unseen.n:,} unseen transitions"
    answer = f"P@1 {unseen.value:.1%}"
    evidence = f"Unseen (n = {unseen.n:,}): cosine {parts['unseen', COSINE]}, P@1 {unseen}."
    enough = seen.n >= MIN_EXAMPLES and seen.value is not None
    if seen.value is not None:
        evidence += f" Seen (n = {seen.n:,}): cosine {parts['seen', COSINE]}, P@1 {seen}."
    if enough:
        sentence += f", and in {seen.value:.1%} of {seen.n:,} seen ones"
        answer += f", seen {seen.value:.1%}"
    ahead = [n for m in (P1, COSINE) for n in _behind(evaluation, baselines, f"unseen/{m}")]
    lost = [
        name
        for metric in (P1, COSINE)
        for name, gain in differences(evaluation, baselines, metric, "unseen").items()
        if outcome(gain) == "loses to"
    ]
    if ahead:
        sentence += f", where {listed(list(dict.fromkeys(ahead)))} would be better"
    half = not enough or seen.value is None or unseen.value >= seen.value / 2
    above_chance = unseen.low is not None and unseen.low > evaluation.chance_p1
    good = half and above_chance and bool(baselines) and not ahead
    tone = BAD if lost or not above_chance else GOOD if good else OPEN
    return Statement(question, answer, sentence + ".", evidence, tone)


def _copies(evaluation: Evaluation, dataset: Dataset) -> Statement:
    last = dataset.examples(evaluation.split).last
    share = float((evaluation.found[:, 0] == last).mean())
    answer, sentence, tone = "no", "It does not copy its input.", GOOD
    if share > COPIES_FROM:
        answer, sentence, tone = "yes", "It copies its input.", BAD
    elif share > PARTLY_FROM:
        answer, sentence, tone = "partly", f"It copies its input in {share:.0%} of cases.", OPEN
    if evaluation.n_examples < MIN_EXAMPLES:
        tone = OPEN
    return Statement(
        "Does it copy its input?",
        answer,
        sentence,
        f"n = {evaluation.n_examples:,}. Its prediction is nearest to the last concept of its own "
        f"context in {share:.1%} of cases.",
        tone,
    )


def _collapsed(evaluation: Evaluation, baselines: Mapping[str, Evaluation]) -> Statement:
    """The verdict of `gates.collapse_gate`, so that page and gates never differ.

    It is good only where the nearest concepts are about as many as there are different targets, or
    no fewer than those of any baseline.
    """
    verdict = gates.collapse_gate(evaluation)
    answer, sentence, tone = {
        gates.FAIL: ("yes", "It has collapsed towards few predictions.", BAD),
        gates.PASS: ("no", "It has not collapsed.", GOOD),
        gates.NOT_RUN: ("unknown", "Whether it has collapsed is unknown.", OPEN),
    }[str(verdict)]
    ours, truth = (evaluation.scalars[f"{k}_concepts"] for k in ("predicted", "target"))
    more = max((b.scalars["predicted_concepts"] for b in baselines.values()), default=0.0)
    if tone == GOOD and ours < VARIED_FROM * truth and ours < more:
        answer, tone = f"partly, {ours:,.0f} concepts of {truth:,.0f}", OPEN
        sentence = f"It finds {ours:,.0f} different concepts where {truth:,.0f} are true."
    share = evaluation.scalars["prediction_variance"] / max(
        evaluation.scalars["target_variance"], EPS
    )
    mean = evaluation.figures.get("cosine_to_global_mean")
    return Statement(
        "Has it collapsed?",
        answer,
        sentence,
        f"n = {evaluation.n_examples:,}. Its predictions have {share:.0%} of the targets' variance "
        f"and a cosine of {mean or 'unknown size'} to the mean train target. Their nearest "
        f"concepts are {ours:,.0f} different ones, the true next concepts {truth:,.0f}; below "
        f"{gates.MIN_VARIANCE_SHARE:.0%} of either is collapse.",
        tone,
    )


def listed(names: Sequence[str]) -> str:
    """Return ``a``, ``a and b``, ``a, b and c``."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
