"""What the whole of a dataset knows of some of its examples, found by one pass over all chains."""

from __future__ import annotations

import numpy as np

from ocp_mamba.data.analysis.subset import places_of
from ocp_mamba.data.chunks import ChainChunk, chain_chunks
from ocp_mamba.data.dataset import SPLITS, Dataset

SEEN, KNOWN_TARGET = 1, 2
"""Bits: the transition is a step of a train chain; some step of one leads to the target."""
IN_SPLIT = {split: 4 << number for number, split in enumerate(SPLITS)}
"""Bits: the same context and target are an example of this split."""


def overlap_with_dataset(
    dataset: Dataset, chains: np.ndarray, *, progress: bool = False
) -> tuple[np.ndarray, int]:
    """Look at all chains for what the examples of some of them have in common with the rest.

    Args:
        dataset: the whole.
        chains: int64 ``(m,)``, ids of the chains asked about, rising.
        progress: show a progress bar.

    Returns:
        uint8, one number for each concept of these chains: bits of what holds for the example of
        which it is the target; and how many concepts of the bank stand in any chain.
    """
    at, lengths = places_of(dataset, chains)
    starts = np.cumsum(lengths) - lengths
    values = dataset.chain_values[at].astype(np.int64)
    place = np.arange(len(values)) - np.repeat(starts, lengths)
    transitions = _Transitions(values, place > 0, dataset.n_concepts)
    prefixes = _Prefixes(values, starts, lengths, dataset.n_concepts)
    known = np.zeros(dataset.n_concepts, bool)
    used = np.zeros(dataset.n_concepts, bool)
    for chunk in chain_chunks(dataset, "looking for it in all chains", progress):
        last, target = chunk.examples("train", min_context=1)
        known[target] = True
        used[chunk.values] = True
        transitions.overlap_with_dataset(last, target)
        prefixes.overlap_with_dataset(chunk)
    met = prefixes.bits()
    met[transitions.seen()] |= SEEN
    met[known[values]] |= KNOWN_TARGET
    return met, int(used.sum())


class _Transitions:
    """Which steps between two concepts have been met."""

    def __init__(self, values: np.ndarray, asked: np.ndarray, n_concepts: int) -> None:
        self._n, self._asked = n_concepts, asked
        at = np.flatnonzero(asked)
        self._keys, self._number = np.unique(
            values[at - 1] * n_concepts + values[at], return_inverse=True
        )
        self._met = np.zeros(len(self._keys), bool)
        self._targets = np.zeros(n_concepts, bool)
        self._targets[values[at]] = True

    def overlap_with_dataset(self, last: np.ndarray, target: np.ndarray) -> None:
        near = self._targets[target]
        found, _ = _find(self._keys, last[near] * self._n + target[near])
        self._met[found] = True

    def seen(self) -> np.ndarray:
        """Whether the step to each concept was met, bool."""
        seen = np.zeros(len(self._asked), bool)
        seen[self._asked] = self._met[self._number]
        return seen


class _Prefixes:
    """Which prefixes of the chains asked about are examples of which split; a trie, by depth.

    A prefix of d + 1 concepts is one number: the place of (number of its first d, last concept)
    among all such pairs of that depth.
    """

    def __init__(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, n_concepts: int
    ) -> None:
        self._n, self._total = n_concepts, len(values)
        self._keys: list[np.ndarray] = []
        self._own: list[tuple[np.ndarray, np.ndarray]] = []
        self._met: list[np.ndarray] = []
        number = np.zeros(len(starts), np.int64)
        for depth in range(int(lengths.max())):
            longer = lengths > depth
            starts, lengths, number = starts[longer], lengths[longer], number[longer]
            keys, number = np.unique(
                number * n_concepts + values[starts + depth], return_inverse=True
            )
            self._keys.append(keys)
            self._own.append((starts + depth, number))
            self._met.append(np.zeros(len(keys), np.uint8))

    def overlap_with_dataset(self, chunk: ChainChunk) -> None:
        alive = np.arange(len(chunk.chains))
        number = np.zeros(len(alive), np.int64)
        bits = np.array([IN_SPLIT[split] for split in SPLITS], np.uint8)
        for depth, keys in enumerate(self._keys):
            longer = chunk.lengths[alive] > depth
            alive, number = alive[longer], number[longer]
            values = chunk.values[chunk.starts[alive] + depth]
            number, here = _find(keys, number * self._n + values)
            alive = alive[here]
            if len(alive) == 0:
                return
            example = chunk.first[alive] <= depth
            for bit in np.unique(bits[chunk.split[alive[example]]]):
                of_split = bits[chunk.split[alive]] == bit
                self._met[depth][number[example & of_split]] |= bit

    def bits(self) -> np.ndarray:
        """The splits in which the prefix up to each concept is an example, uint8."""
        bits = np.zeros(self._total, np.uint8)
        for (at, number), met in zip(self._own, self._met, strict=True):
            bits[at] = met[number]
        return bits


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places among rising keys of those wanted that are there, and a mask of which are."""
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    there = keys[at] == wanted
    return at[there], there
