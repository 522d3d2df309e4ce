"""A dataset in sentences: its direction, what val repeats of train, its groups, its faults."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.data.split import chain_groups

CLEAR_DIRECTION = 1.2
"""How much larger one fan must be than the other for chains to have a direction."""
FEW_SEEN, MANY_SEEN = 0.10, 0.98
"""Shares of seen transitions below and above which a split is warned of."""
LARGE_GROUP = 0.20
"""Share of a dataset's chains in one group from which it is warned of."""
MIN_UNSEEN = 30
"""Fewest unseen transitions on which anything is said of a model."""
MIN_PAIRS = 100
"""Fewest examples of a split on which targets are said to be shuffled."""
REPEAT_LIMIT = 0.01
"""Largest share of targets that equal the context's last concept without a warning."""
ZERO_TMD_LIMIT = 0.5
"""Largest share of chains with all-zero TMD codes without a warning."""
TMD_IS = (
    "TMD codes say the Domain, Task and Modifier of a chain as 16 numbers; only a model that is "
    "trained with them reads them (--tmd, preset tmd)"
)


def fans(dataset: Dataset) -> tuple[float, float]:
    """Return the mean number of different successors and predecessors of a concept with any.

    In chains from leaves to a root most concepts have one successor, and some many predecessors.
    """
    follows = np.ones(len(dataset.chain_values), bool)
    follows[dataset.chain_offsets[:-1]] = False
    at = np.flatnonzero(follows)
    values = dataset.chain_values.astype(np.int64)
    steps = np.unique(values[at - 1] * dataset.n_concepts + values[at])
    one, other = steps // dataset.n_concepts, steps % dataset.n_concepts
    return len(steps) / len(np.unique(one)), len(steps) / len(np.unique(other))


def direction(fan_out: float, fan_in: float) -> str:
    """Return which way chains go, from the two fans."""
    if fan_in > CLEAR_DIRECTION * fan_out:
        return "leaf → root"
    return "root → leaf" if fan_out > CLEAR_DIRECTION * fan_in else "no clear direction"


def describe(dataset: Dataset) -> tuple[dict[str, float], list[str], list[str]]:
    """Describe the chains of a dataset as a whole.

    Returns:
        Numbers by name, sentences about them, and sentences that warn.
    """
    fan_out, fan_in = fans(dataset)
    groups = chain_groups(
        dataset.chain_values, dataset.chain_offsets, dataset.chain_first, join_siblings=True
    )
    sizes = np.unique(groups, return_counts=True)[1]
    largest, n = int(sizes.max()), dataset.n_chains
    numbers = {
        "fan_out": fan_out,
        "fan_in": fan_in,
        "groups": float(len(sizes)),
        "largest_group_chains": float(largest),
        "largest_group_share": largest / n,
    }
    said = [
        f"Direction: {direction(fan_out, fan_in)}. On average a concept has {fan_out:.2f} "
        f"different successors and {fan_in:.2f} different predecessors.",
        f"Groups: {n:,} chains are {len(sizes):,} groups that share an example or differ in their "
        f"first concept only; the largest has {largest:,}.",
    ]
    warned = []
    if len(sizes) > 1 and largest / n >= LARGE_GROUP:
        split = SPLITS[int(np.bincount(dataset.split[groups == _largest(groups)]).argmax())]
        warned.append(
            f"{largest:,} of {n:,} chains ({largest / n:.0%}) are one group, in {split}: chains "
            "that are near copies stay together, so the other splits are of other parts of the "
            "ontology, and intervals over so few groups are too narrow."
        )
    return numbers, said, warned


def _largest(groups: np.ndarray) -> int:
    names, counts = np.unique(groups, return_counts=True)
    return int(names[counts.argmax()])


def seen_sentences(split: str, values: Mapping[str, float]) -> tuple[str, str | None]:
    """Return how many transitions of a split are in train, and a warning where few or many are.

    Args:
        split: "val" or "test".
        values: its numbers in the leak report.
    """
    n, seen = int(values["examples"]), int(values["seen_examples"])
    unseen, share = n - seen, values["transitions_seen_share"]
    said = f"{split}: train has {seen:,} of {n:,} transitions ({share:.1%}); {unseen:,} are unseen."
    if share < FEW_SEEN:
        return said, (
            f"train has only {seen:,} of {n:,} transitions of {split} ({share:.1%}): looking "
            "neighbours up in train helps little there, and numbers over seen transitions are over "
            "few."
        )
    if share > MANY_SEEN or unseen < MIN_UNSEEN:
        return said, (
            f"train has {seen:,} of {n:,} transitions of {split} ({share:.1%}): looking them up is "
            f"enough there, and the {unseen:,} unseen ones are "
            + ("too few to say" if unseen < MIN_UNSEEN else "few to say")
            + " what a model does on new ones."
        )
    return said, None


def leak_warnings(
    splits: Mapping[str, Mapping[str, float]],
    pairs: Mapping[tuple[str, str], tuple[int, float]],
    bank: Mapping[str, float],
    sampled: bool,
) -> list[str]:
    """Return what a leak report warns of; arguments as its attributes."""
    of = "the sample of " if sampled else ""
    found = [
        f"{count} examples of {of}{other} ({share:.1%}) also are in {one}, context and target: "
        f"{other} is not unseen data."
        for (one, other), (count, share) in pairs.items()
        if count
    ]
    found += [
        f"split {split} has no examples: nothing can be measured on it."
        for split in SPLITS
        if split not in splits
    ]
    for split, values in splits.items():
        if (unrelated := _unrelated(split, values)) is not None:
            found.append(unrelated)
        if values["target_is_last_share"] > REPEAT_LIMIT:
            found.append(
                f"in {split} {values['target_is_last_share']:.1%} of the targets are the last "
                "concept of their own context: the targets look off by one."
            )
    return found + _bank_warnings(bank)


def _unrelated(split: str, values: Mapping[str, float]) -> str | None:
    """The warning of targets that are no nearer to their context than to another one.

    Few examples show nothing either way. And targets look shuffled only where neighbours within the
    contexts are near, and targets clearly less than half as much.
    """
    gain = values["paired_cosine"] - values["permuted_cosine"]
    error = values["paired_gain_standard_error"]
    if values["examples"] < MIN_PAIRS or gain > 2 * error:
        return None
    numbers = (
        f"in {split} a target is no nearer to its context ({values['paired_cosine']:.3f}) than to "
        f"another one ({values['permuted_cosine']:.3f})"
    )
    within = values.get("context_gain", 0.0)
    if (
        within > 2 * values.get("context_gain_standard_error", 0.0)
        and gain + 2 * error < within / 2
    ):
        return (
            f"{numbers}, and neighbours within a context are (by {within:.3f}): the targets look "
            "shuffled or off by one row."
        )
    return f"{numbers}: the vectors show no relation between neighbours in a chain."


def _bank_warnings(bank: Mapping[str, float]) -> list[str]:
    found = []
    if bank["non_unit_rows"]:
        found.append(f"{bank['non_unit_rows']:.0f} bank rows are not of unit length.")
    if bank["duplicate_vectors"]:
        found.append(
            f"{bank['duplicate_vectors']:.0f} bank rows repeat another row's vector, but for "
            "rounding: retrieval cannot tell such concepts apart."
        )
    if bank["duplicate_texts"]:
        found.append(f"{bank['duplicate_texts']:.0f} bank rows repeat another row's text.")
    if bank.get("zero_tmd_share", 0.0) > ZERO_TMD_LIMIT:
        found.append(
            f"{bank['zero_tmd_share']:.1%} of the chains have all-zero TMD codes, from which a "
            f"model that reads them learns nothing. {TMD_IS}."
        )
    return found
