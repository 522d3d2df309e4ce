"""What some examples of a dataset share with all its chains, found in one pass over the chains.

Each example gets one uint8 number whose bits say which of the facts below hold for it.
"""

from __future__ import annotations

import numpy as np

from ocp_mamba.data.analysis.subset import places_of
from ocp_mamba.data.chunks import ChainChunk, chain_chunks
from ocp_mamba.data.dataset import SPLITS, Dataset

SEEN = 1
"""The transition (last concept of the context → target) is a step of a train chain."""

KNOWN_TARGET = 2
"""Some step of a train chain leads to the target."""

IN_SPLIT = {split: 4 << number for number, split in enumerate(SPLITS)}
"""The same context and target are an example of this split, by the dataset's own rule."""

IN_TRAIN_CHAIN = 32
"""A train chain begins with the context and the target, be they an example of it or not."""


def overlap_with_dataset(
    dataset: Dataset, chains: np.ndarray, *, progress: bool = False
) -> tuple[np.ndarray, int]:
    """Compare the examples of some chains with all chains of a dataset.

    Args:
        dataset: the whole dataset.
        chains: int64 ``(m,)``, ids of the chains whose examples are compared, ascending.
        progress: show a progress bar.

    Returns:
        The bits, uint8, one number for each concept of these chains: those of the example whose
        target the concept is. And the number of concepts of the bank that occur in any chain.
    """
    at, lengths = places_of(dataset, chains)
    starts = np.cumsum(lengths) - lengths
    values = dataset.chain_values[at].astype(np.int64)
    position = np.arange(len(values)) - np.repeat(starts, lengths)
    transitions = _TransitionLookup(values, position > 0, dataset.n_concepts)
    prefixes = _PrefixLookup(values, starts, lengths, dataset.n_concepts)
    known = np.zeros(dataset.n_concepts, bool)
    used = np.zeros(dataset.n_concepts, bool)
    for chunk in chain_chunks(dataset, "comparing with all chains", progress):
        last, target = chunk.examples("train", min_context=1)
        known[target] = True
        used[chunk.values] = True
        transitions.add(last, target)
        prefixes.add(chunk)
    bits = prefixes.bits()
    bits[transitions.seen()] |= SEEN
    bits[known[values]] |= KNOWN_TARGET
    return bits, int(used.sum())


class _TransitionLookup:
    """Finds which transitions of the compared chains occur among those added."""

    def __init__(self, values: np.ndarray, is_target: np.ndarray, n_concepts: int) -> None:
        self._n, self._is_target = n_concepts, is_target
        at = np.flatnonzero(is_target)
        self._keys, self._number = np.unique(
            values[at - 1] * n_concepts + values[at], return_inverse=True
        )
        self._found = np.zeros(len(self._keys), bool)
        self._targets = np.zeros(n_concepts, bool)
        self._targets[values[at]] = True

    def add(self, last: np.ndarray, target: np.ndarray) -> None:
        """Mark the transitions from ``last`` to ``target``, int64 ``(n,)`` each."""
        possible = self._targets[target]
        found, _ = _find(self._keys, last[possible] * self._n + target[possible])
        self._found[found] = True

    def seen(self) -> np.ndarray:
        """Whether the transition to each concept of the compared chains was added, bool."""
        seen = np.zeros(len(self._is_target), bool)
        seen[self._is_target] = self._found[self._number]
        return seen


class _PrefixLookup:
    """Finds where the prefixes of the compared chains occur; a trie, stored by depth.

    A prefix of d + 1 concepts is one number: the rank of (number of its first d concepts, last
    concept) among all such pairs of that depth.
    """

    def __init__(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, n_concepts: int
    ) -> None:
        self._n, self._total = n_concepts, len(values)
        self._keys: list[np.ndarray] = []
        self._places: list[tuple[np.ndarray, np.ndarray]] = []
        self._bits: list[np.ndarray] = []
        number = np.zeros(len(starts), np.int64)
        for depth in range(int(lengths.max())):
            longer = lengths > depth
            starts, lengths, number = starts[longer], lengths[longer], number[longer]
            keys, number = np.unique(
                number * n_concepts + values[starts + depth], return_inverse=True
            )
            self._keys.append(keys)
            self._places.append((starts + depth, number))
            self._bits.append(np.zeros(len(keys), np.uint8))

    def add(self, chunk: ChainChunk) -> None:
        """Set the bits of the prefixes with which the chunk's chains begin."""
        active = np.arange(len(chunk.chains))
        number = np.zeros(len(active), np.int64)
        for depth, keys in enumerate(self._keys):
            longer = chunk.lengths[active] > depth
            active, number = active[longer], number[longer]
            values = chunk.values[chunk.starts[active] + depth]
            number, is_found = _find(keys, number * self._n + values)
            active = active[is_found]
            if len(active) == 0:
                return
            split, is_example = chunk.split[active], chunk.first[active] <= depth
            bits = self._bits[depth]
            for code, name in enumerate(SPLITS):
                bits[number[is_example & (split == code)]] |= IN_SPLIT[name]
            bits[number[split == SPLITS.index("train")]] |= IN_TRAIN_CHAIN

    def bits(self) -> np.ndarray:
        """The bits of the prefix that ends in each concept of the compared chains, uint8."""
        out = np.zeros(self._total, np.uint8)
        for (places, number), bits in zip(self._places, self._bits, strict=True):
            out[places] = bits[number]
        return out


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places in sorted keys of those wanted numbers that occur there, and which ones do, bool."""
    at = np.searchsorted(keys, wanted)
    at[at == len(keys)] = 0
    is_found = keys[at] == wanted
    return at[is_found], is_found
