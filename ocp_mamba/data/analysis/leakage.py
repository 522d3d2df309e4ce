"""The leak report of a dataset: examples in two splits, targets seen in train, ceilings, bad rows.

Two examples are identical when the bank ids of their whole context and of their target are.
``docs/import.md`` has the formula of every number.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from tabulate import tabulate

from ocp_mamba.data.analysis.description import describe, leak_warnings, seen_sentences
from ocp_mamba.data.analysis.duplicates import find_duplicates
from ocp_mamba.data.analysis.overlap import IN_SPLIT, IN_TRAIN_CHAIN, KNOWN_TARGET, SEEN
from ocp_mamba.data.analysis.sample import Sample, SampledDataset, sample_of
from ocp_mamba.data.dataset import SPLITS, Dataset, Examples
from ocp_mamba.stats import other_of_each

LEARN_ALL = 1
"""The ``min_context`` of `check` that covers the most that any training learns."""

NORM_TOLERANCE = 1e-3
"""How far the norm of a unit row may be from 1."""

STRATA = ("seen", "unseen", "unseen_target")
"""Keys of `strata`."""

HEADLINE = (
    "data/val_in_train_examples",
    "data/test_in_train_examples",
    "data/val_transitions_seen_share",
    "data/val_top1_ceiling",
)
"""The numbers of a report that are metrics of its run; all are in its files."""

_CHUNK = 8192


@dataclass(frozen=True)
class LeakReport:
    """What was found in one dataset; a number over no examples is absent.

    Attributes:
        splits: numbers of each split that has examples, by split and name.
        pairs: for two splits, how many examples of the second are also in the first, and their
            share. "In train" means: learnt by a training with ``min_context``.
        bank: numbers of the bank and of the dataset as a whole.
        sources: OCP sequences per source and split.
        warnings: what the user must know, one plain sentence each; empty for a clean dataset.
        sample: what was checked, where that is not the whole dataset. The sample's examples are
            then compared with all chains of the other splits; ``concepts`` and ``unused_concepts``
            are those of the whole dataset, the other numbers those of the sample.
        min_context: fewest concepts of context that training is taken to learn from; None for the
            dataset's own rule, each chain's ``chain_first``.
        description: what the dataset is like, one plain sentence each.
    """

    splits: dict[str, dict[str, float]]
    pairs: dict[tuple[str, str], tuple[int, float]]
    bank: dict[str, float]
    sources: dict[str, dict[str, int]]
    warnings: list[str] = field(default_factory=list)
    sample: Sample | None = None
    min_context: int | None = None
    description: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> bool:
        """Whether an identical (prefix, target) is in two splits."""
        return any(count for count, _ in self.pairs.values())

    def figures(self) -> dict[str, float]:
        """All numbers under names for MLflow, such as ``data/val_targets_seen_share``."""
        flat = {f"data/{name}": float(value) for name, value in self.bank.items()}
        for split, values in self.splits.items():
            flat |= {f"data/{split}_{name}": float(value) for name, value in values.items()}
        for (one, other), (count, share) in self.pairs.items():
            flat[f"data/{other}_in_{one}_examples"] = float(count)
            flat[f"data/{other}_in_{one}_share"] = share
        for source, counts in self.sources.items():
            name = re.sub(r"[^\w\-. /]", "_", source, flags=re.ASCII)
            flat |= {f"data/{s}_source_{name}_examples": float(n) for s, n in counts.items()}
        return flat

    def headline(self) -> dict[str, float]:
        """Return those of `figures` that are metrics of the report's run."""
        figures = self.figures()
        return {name: figures[name] for name in HEADLINE if name in figures}

    def summary(self) -> str:
        """Return what was found in plain sentences as Markdown, warnings first."""
        verdict = (
            "**LEAKS**: identical (prefix, target) examples straddle splits."
            if self.leaks
            else "No identical (prefix, target) example straddles splits."
        )
        scope = [f"Of {self.sample}; looked up in all chains.\n"] if self.sample else []
        warnings = [f"- WARNING: {warning}" for warning in self.warnings]
        parts = [*scope, verdict, _learnt(self.min_context), *warnings]
        return "\n".join([*parts, "", *(f"- {sentence}" for sentence in self.description)])

    def to_markdown(self) -> str:
        """The report as Markdown: the summary, then tables."""
        names = list(dict.fromkeys(name for values in self.splits.values() for name in values))
        rows: list[list[object]] = [
            [name, *(_number(self.splits.get(split, {}).get(name)) for split in SPLITS)]
            for name in names
        ]
        rows += [
            [f"examples from {source}", *(counts.get(split, 0) for split in SPLITS)]
            for source, counts in self.sources.items()
        ]
        pairs = [
            [f"{other} in {one}", count, _number(share)]
            for (one, other), (count, share) in self.pairs.items()
        ]
        whole = [[name, _number(value)] for name, value in self.bank.items()]
        tables = [
            _table(rows, ["number", *SPLITS]),
            _table(pairs, ["identical examples", "count", "share"]),
            _table(whole, ["whole dataset", "value"]),
        ]
        return "\n\n".join([self.summary(), *tables])


def _learnt(min_context: int | None) -> str:
    """The sentence that says which train examples were compared."""
    if min_context is None:
        return "Compared with train: the examples that the dataset evaluates."
    most = ", the most that any training learns" if min_context == LEARN_ALL else ""
    return (
        "Compared with train: every prefix of a train chain with a context of at least "
        f"{min_context} concept{'s' if min_context > 1 else ''}{most} (`min_context`)."
    )


def check(dataset: Dataset, seed: int = 0, *, min_context: int | None = None) -> LeakReport:
    """Look for leaks and faults.

    A leak into val or test is an example that training learns. Training with ``min_context``
    learns more than the dataset's own train examples: every prefix of a train chain that is long
    enough. Which examples of val and test are evaluated does not depend on it.

    Args:
        dataset: any valid dataset.
        seed: seed of the permutation behind ``permuted_cosine``.
        min_context: fewest concepts of context that training learns from, as
            `TrainConfig.min_context`; `LEARN_ALL` where the training is unknown. None takes the
            dataset's own rule, each chain's ``chain_first``.
    """
    nodes = _prefix_nodes(dataset)
    examples = {s: e for s in SPLITS if len((e := dataset.examples(s)).chain)}
    identity = {s: _identity(dataset, nodes, e) for s, e in examples.items()}
    splits = {
        s: _split_numbers(dataset, nodes, s, e, identity[s], seed) for s, e in examples.items()
    }
    pairs = {}
    for one, other in combinations(examples, 2):
        least = min_context if one == "train" else None
        if isinstance(dataset, SampledDataset):
            shared = _shared_with_whole(dataset, examples[other], one, least)
        else:
            learnt = _identity(dataset, nodes, dataset.examples(one, least))
            shared = np.isin(identity[other], learnt)
        pairs[one, other] = (int(shared.sum()), float(shared.mean()))
    bank = _bank_numbers(dataset)
    sources = _source_counts(dataset, examples)
    sample = sample_of(dataset)
    about, said, warned = describe(dataset)
    report = LeakReport(
        splits, pairs, bank | about, sources, sample=sample, min_context=min_context
    )
    report.description.extend(said)
    report.warnings.extend([*leak_warnings(splits, pairs, bank, sample is not None), *warned])
    for split in [s for s in splits if s != "train" and "train" in splits]:
        sentence, warning = seen_sentences(split, splits[split])
        report.description.append(sentence)
        report.warnings.extend([] if warning is None else [warning])
    return report


def _identity(dataset: Dataset, nodes: np.ndarray, examples: Examples) -> np.ndarray:
    """One number per (context, target), int64 (n,); ``nodes`` as `_prefix_nodes` gives them."""
    return nodes[dataset.chain_offsets[examples.chain] + examples.position]


def _shared_with_whole(
    dataset: SampledDataset, examples: Examples, split: str, min_context: int | None
) -> np.ndarray:
    """Which examples of a sample are in a split of the whole dataset, bool (n,)."""
    if min_context is None:
        return dataset.overlaps(examples, IN_SPLIT[split])
    return dataset.overlaps(examples, IN_TRAIN_CHAIN) & (examples.position >= min_context)


def strata(dataset: Dataset, split: str) -> dict[str, np.ndarray]:
    """Group the examples of a split by what of them occurs in train.

    Returns:
        Three bool arrays over ``dataset.examples(split)``: ``seen``, the transition (last concept
        of the context → target) is a step of a train chain, the first step included; ``unseen``,
        all others; ``unseen_target``, no step of a train chain leads to the target.
        ``unseen_target`` is a part of ``unseen``.

    Raises:
        ValueError: ``split`` is unknown.
    """
    if isinstance(dataset, SampledDataset):
        examples = dataset.examples(split)
        seen = dataset.overlaps(examples, SEEN)
        known = dataset.overlaps(examples, KNOWN_TARGET)
        return {"seen": seen, "unseen": ~seen, "unseen_target": ~known}
    train, examples = dataset.examples("train", min_context=1), dataset.examples(split)
    seen = np.isin(_transitions(dataset, examples), _transitions(dataset, train))
    return {
        "seen": seen,
        "unseen": ~seen,
        "unseen_target": ~np.isin(examples.target, train.target),
    }


def _prefix_nodes(dataset: Dataset) -> np.ndarray:
    """Number the different prefixes: int64, one per entry of ``chain_values``.

    Entry ``chain_offsets[c] + k`` is the number of ``chain[:k + 1]``; two numbers are equal exactly
    when the prefixes are. Built like a trie, for all chains at once, one position at a time.
    """
    nodes = np.full(len(dataset.chain_values), -1, dtype=np.int64)
    active = np.arange(dataset.n_chains)
    parent = np.zeros(dataset.n_chains, dtype=np.int64)
    total = 0
    for depth in range(int(dataset.lengths.max())):
        longer = dataset.lengths[active] > depth
        active, parent = active[longer], parent[longer]
        flat = dataset.chain_offsets[active] + depth
        pair = parent * dataset.n_concepts + dataset.chain_values[flat]
        kinds, node = np.unique(pair, return_inverse=True)
        nodes[flat] = parent = node + total
        total += len(kinds)
    return nodes


def _transitions(dataset: Dataset, examples: Examples) -> np.ndarray:
    """One number per (last, target), int64 (n,)."""
    return examples.last.astype(np.int64) * dataset.n_concepts + examples.target


def _split_numbers(
    dataset: Dataset,
    nodes: np.ndarray,
    split: str,
    examples: Examples,
    identity: np.ndarray,
    seed: int,
) -> dict[str, float]:
    n = len(examples.chain)
    prefix = nodes[dataset.chain_offsets[examples.chain] + examples.position - 1]
    paired, permuted = _near_and_far(
        dataset.bank, examples.last, examples.target, examples.position, seed
    )
    gain = paired - permuted
    numbers = {
        "chains": float(len(dataset.chains_in(split))),
        "examples": float(n),
        "repeated_examples": float(n - len(np.unique(identity))),
        "top1_ceiling": _ceiling(prefix, identity),
        "paired_cosine": float(paired.mean()),
        "permuted_cosine": float(permuted.mean()),
        "paired_gain_standard_error": float(gain.std() / np.sqrt(n)),
        "target_is_last_share": float((examples.last == examples.target).mean()),
        **_context_gain(dataset, split, seed),
    }
    if split == "train":
        return numbers
    parts = strata(dataset, split)
    numbers["targets_seen_share"] = float(1 - parts["unseen_target"].mean())
    numbers["transitions_seen_share"] = float(parts["seen"].mean())
    return numbers | {f"{name}_examples": float(part.sum()) for name, part in parts.items()}


def _near_and_far(
    bank: np.ndarray, one: np.ndarray, other: np.ndarray, position: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of pairs, and of the first of each with the second of another pair, float32 (n,).

    The other pair is of the same position in its chain, because languages or levels may alternate
    along chains, and its second is another concept, because there may be few. Where there is no
    such pair, the two cosines are the same.
    """
    far = other.copy()
    for place in np.unique(position):
        rows = position == place
        drawn = other_of_each(other[rows], seed)
        if drawn is not None:
            far[rows] = drawn
    return _cosines(bank, one, other), _cosines(bank, one, far)


def _context_gain(dataset: Dataset, split: str, seed: int) -> dict[str, float]:
    """How much nearer neighbours are within the contexts, before any target, with its error.

    That is what targets are compared with: where neighbours in a context are near and targets are
    not, the targets are the fault.
    """
    ids = dataset.chains_in(split)
    counts = dataset.chain_first[ids].astype(np.int64) - 1
    begins_of = dataset.chain_offsets[ids]
    at = np.repeat(begins_of - np.cumsum(counts) + counts, counts) + np.arange(counts.sum()) + 1
    if len(at) == 0:
        return {}
    one, other = dataset.chain_values[at - 1], dataset.chain_values[at]
    near, far = _near_and_far(dataset.bank, one, other, at - np.repeat(begins_of, counts), seed)
    gain = near - far
    return {
        "context_gain": float(gain.mean()),
        "context_gain_standard_error": float(gain.std() / np.sqrt(len(gain))),
    }


def _ceiling(prefix: np.ndarray, identity: np.ndarray) -> float:
    """Best top-1 of a predictor that knows the prefix: its most frequent target, each time."""
    _, first, counts = np.unique(identity, return_index=True, return_counts=True)
    _, group = np.unique(prefix[first], return_inverse=True)
    best = np.zeros(group.max() + 1, dtype=np.int64)
    np.maximum.at(best, group, counts)
    return float(best.sum() / len(prefix))


def _cosines(bank: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Inner products of unit rows, float32 (n,)."""
    parts = [
        np.einsum("nd,nd->n", bank[one[i : i + _CHUNK]], bank[other[i : i + _CHUNK]])
        for i in range(0, len(one), _CHUNK)
    ]
    return np.concatenate(parts)


def _bank_numbers(dataset: Dataset) -> dict[str, float]:
    bank, texts = dataset.bank, dataset.texts
    norms = [np.linalg.norm(bank[i : i + _CHUNK], axis=1) for i in range(0, len(bank), _CHUNK)]
    off = np.abs(np.concatenate(norms) - 1)
    numbers = {
        "concepts": float(len(bank)),
        "non_unit_rows": float((off > NORM_TOLERANCE).sum()),
        "largest_norm_error": float(off.max()),
        "duplicate_vectors": float(len(bank) - len(np.unique(find_duplicates(bank)[0]))),
        "duplicate_texts": float(len(texts) - len(np.unique(texts))),
        "unused_concepts": float(len(bank) - len(np.unique(dataset.chain_values))),
    }
    if isinstance(dataset, SampledDataset):
        numbers["concepts"] = float(dataset.sample.concepts[1])
        numbers["unused_concepts"] = float(dataset.unused)
    if dataset.chain_tmd is not None:
        numbers["zero_tmd_share"] = float((~dataset.chain_tmd.any(axis=1)).mean())
    if dataset.chain_relation is not None:
        known, confidence = np.count_nonzero(dataset.chain_relation), dataset.chain_confidence
        numbers["relations"] = float(len(dataset.relations))
        numbers["known_relation_share"] = known / (len(dataset.chain_values) - dataset.n_chains)
        if known:
            numbers["mean_relation_confidence"] = (
                1.0 if confidence is None else float(confidence.sum(dtype=np.float64)) / known
            )
    return numbers


def _source_counts(dataset: Dataset, examples: dict[str, Examples]) -> dict[str, dict[str, int]]:
    names = dataset.meta["sources"]
    counts = {
        s: np.bincount(dataset.chain_source[e.chain], minlength=len(names))
        for s, e in examples.items()
    }
    return {name: {s: int(c[i]) for s, c in counts.items()} for i, name in enumerate(names)}


def _number(value: float | None) -> str:
    """A whole number plainly, any other to four digits, a missing one as a dash."""
    if value is None:
        return "-"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4g}"


def _table(rows: Sequence[Sequence[object]], headers: list[str]) -> str:
    return tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
