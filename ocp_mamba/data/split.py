"""Train, val and test by chain: stratified, and without an example that two of them share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from tabulate import tabulate

from ocp_mamba.config import MIN_CONTEXT
from ocp_mamba.data.components import smallest_of_component
from ocp_mamba.data.dataset import SPLITS, Dataset

FRACTIONS = (0.70, 0.15, 0.15)
"""Share of the chains that train, val and test should get."""


@dataclass(frozen=True)
class SourceSplit:
    """How the chains of one source were split.

    Attributes:
        source: the source's name.
        chains: number of chains in train, val and test.
        groups: number of groups of chains that must stay together.
        largest_group: chains in the largest of these groups.
    """

    source: str
    chains: tuple[int, int, int]
    groups: int
    largest_group: int


@dataclass(frozen=True)
class SplitReport:
    """The result of a split, source by source."""

    sources: tuple[SourceSplit, ...]

    @property
    def warnings(self) -> list[str]:
        """One sentence per source whose val or test got less than half of the wanted share."""
        found = []
        for row in self.sources:
            total = sum(row.chains)
            too_small = [
                f"{name} got {n} of {ceil(share * total)} wanted"
                for name, n, share in zip(SPLITS, row.chains, FRACTIONS, strict=True)
                if n < 0.5 * share * total
            ]
            if too_small:
                found.append(
                    f"source {row.source}: {' and '.join(too_small)}; chains that share examples "
                    f"stay together, and the largest such group has {row.largest_group} of its "
                    f"{total} chains; metrics on so few chains say little about this source"
                )
        return found

    def to_markdown(self) -> str:
        """A table, one row per source."""
        rows = [[r.source, *r.chains, r.groups, r.largest_group] for r in self.sources]
        headers = ["source", *SPLITS, "groups", "largest group"]
        return tabulate(rows, headers, tablefmt="github", intfmt=",")


def chain_groups(
    values: np.ndarray,
    offsets: np.ndarray,
    first: np.ndarray | None = None,
    *,
    join_siblings: bool = False,
    min_context: int | None = None,
) -> np.ndarray:
    """Number the groups of chains that share an example, directly or through other chains.

    Two chains share an example when they begin with the same ``k + 1`` concepts for a position k
    that is a target in both of them. Siblings are chains that differ in their first concept only:
    kinds of one thing. Their examples are near copies, so a dataset that draws siblings together
    must not let one train what another evaluates.

    Args:
        values: flat bank ids of all chains.
        offsets: where each chain starts, (n_chains + 1,).
        first: index of each chain's first target, (n_chains,); None for 2 everywhere.
        join_siblings: put siblings into one group too.
        min_context: also put two chains into one group if one begins with an example of the other,
            of at least this many concepts of context: training with this ``min_context`` learns it
            from both. None compares examples with examples only.

    Returns:
        int64 (n_chains,), the lowest chain id in the chain's group.
    """
    n = len(offsets) - 1
    first = np.full(n, MIN_CONTEXT) if first is None else first
    bounds = list(zip(offsets[:-1].tolist(), offsets[1:].tolist(), first.tolist(), strict=True))
    examples = {
        values[start:stop].tobytes()
        for start, end, k in bounds
        for stop in range(start + k + 1, end + 1)
    }
    owner: dict[tuple[bool, bytes], int] = {}
    pairs: list[tuple[int, int]] = []
    for i, (start, end, k) in enumerate(bounds):
        least = k if min_context is None else min(k, min_context)
        prefixes = [values[start:stop].tobytes() for stop in range(start + least + 1, end + 1)]
        keys = [(False, prefix) for prefix in prefixes if prefix in examples]
        if join_siblings:
            keys.append((True, values[start + 1 : end].tobytes()))
        pairs += [(i, owner.setdefault(key, i)) for key in keys]
    one, other = np.array(pairs, np.int64).reshape(-1, 2).T
    return smallest_of_component(n, one, other)


def families(dataset: Dataset, split: str) -> np.ndarray:
    """Number the family of each OCP sequence of a split; intervals draw families as a whole.

    A family is a group of `chain_groups` among the split's own chains, siblings joined. Its
    examples are near copies of one another, so they are little more evidence than one of them.

    Returns:
        int64 ``(n_examples,)``, the lowest chain id of the family, in the order of
        ``dataset.examples(split)``.
    """
    chains = dataset.chains_in(split)
    if len(chains) == 0:
        return np.zeros(0, np.int64)
    lengths = dataset.lengths[chains]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    values = np.concatenate([dataset.chain(i) for i in chains])
    group = chain_groups(values, offsets, dataset.chain_first[chains], join_siblings=True)
    owner = np.zeros(dataset.n_chains, np.int64)
    owner[chains] = chains[group]
    return owner[dataset.examples(split).chain]


def split_chains(
    values: np.ndarray,
    offsets: np.ndarray,
    source: np.ndarray,
    *,
    seed: int,
    first: np.ndarray | None = None,
    join_siblings: bool = False,
    min_context: int | None = None,
) -> np.ndarray:
    """Split 70/15/15 by chain, stratified by source and length, groups kept whole.

    Groups are assigned from the largest to the smallest; the seed orders groups of one size. Each
    goes to the split that is furthest behind its share of the group's
    strata (the Sainte-Laguë rule), among those that may still take that many chains of its source;
    a group too large for all three goes to train.

    Args:
        values: flat bank ids of all chains.
        offsets: where each chain starts, (n_chains + 1,).
        source: source number of each chain, (n_chains,).
        seed: the split depends on it and on the other arguments alone.
        first: index of each chain's first target, (n_chains,); None for 2 everywhere.
        join_siblings: as in `chain_groups`.
        min_context: as in `chain_groups`.

    Returns:
        uint8 (n_chains,), index into `SPLITS`.
    """
    groups = chain_groups(
        values, offsets, first, join_siblings=join_siblings, min_context=min_context
    )
    sources = source.tolist()
    strata = list(zip(sources, np.diff(offsets).tolist(), strict=True))
    room = {s: [ceil(share * n) for share in FRACTIONS] for s, n in Counter(sources).items()}
    members: dict[int, list[int]] = defaultdict(list)
    for i, g in enumerate(groups.tolist()):
        members[g].append(i)
    order = np.random.default_rng(seed).permutation(sorted(members)).tolist()
    order.sort(key=lambda g: -len(members[g]))

    assigned: list[Counter[tuple[int, int]]] = [Counter() for _ in SPLITS]
    split = np.zeros(len(sources), dtype=np.uint8)
    for g in order:
        by_stratum = Counter(strata[i] for i in members[g])
        by_source = Counter(sources[i] for i in members[g])
        fits = [s for s in range(len(SPLITS)) if all(n <= room[k][s] for k, n in by_source.items())]
        chosen = _furthest_behind(fits, by_stratum, assigned) if fits else SPLITS.index("train")
        split[members[g]] = chosen
        assigned[chosen].update(by_stratum)
        for k, n in by_source.items():
            room[k][chosen] -= n
    return split


def _furthest_behind(
    fits: list[int], by_stratum: Counter[tuple[int, int]], assigned: list[Counter[tuple[int, int]]]
) -> int:
    """The split with the largest claim to a group; among equals the one with fewer chains."""

    def claim(s: int) -> tuple[float, float]:
        share = FRACTIONS[s]
        in_strata = sum(n * share / (2 * assigned[s][k] + n) for k, n in by_stratum.items())
        return in_strata, share / (2 * assigned[s].total() + 1)

    return max(fits, key=claim)


def split_report(
    values: np.ndarray,
    offsets: np.ndarray,
    source: np.ndarray,
    split: np.ndarray,
    names: Sequence[str],
    *,
    first: np.ndarray | None = None,
    join_siblings: bool = False,
    min_context: int | None = None,
) -> SplitReport:
    """Count chains per source and split, and the groups that had to stay together.

    Args:
        values: flat bank ids of all chains.
        offsets: where each chain starts, (n_chains + 1,).
        source: source number of each chain, (n_chains,).
        split: index into `SPLITS` of each chain, (n_chains,).
        names: names of the sources.
        first: index of each chain's first target, (n_chains,); None for 2 everywhere.
        join_siblings: as in `chain_groups`.
        min_context: as in `chain_groups`.
    """
    groups = chain_groups(
        values, offsets, first, join_siblings=join_siblings, min_context=min_context
    )
    rows = []
    for number, name in enumerate(names):
        mine = source == number
        train, val, test = np.bincount(split[mine], minlength=len(SPLITS)).tolist()
        sizes = np.unique(groups[mine], return_counts=True)[1]
        rows.append(SourceSplit(name, (train, val, test), len(sizes), int(sizes.max(initial=0))))
    return SplitReport(tuple(rows))
