"""A pass over all chains of a dataset in chunks, so that any number of chains fits in memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from ocp_mamba.data.dataset import SPLITS, Dataset, first_targets

CHAINS = 1 << 16
"""Chains in one chunk; what is computed for them takes about 50 MB."""

TERMINAL_SECONDS, LOG_SECONDS = 0.1, 10.0
"""Seconds between two updates of the progress bar, in a terminal and in a log file."""


@dataclass(frozen=True)
class ChainChunk:
    """Some consecutive chains.

    Attributes:
        chains: int64 ``(m,)``, their ids.
        split: uint8 ``(m,)``, index into `SPLITS`.
        lengths: int64 ``(m,)``, number of concepts of each chain.
        starts: int64 ``(m,)``, index in ``values`` at which each chain begins.
        first: int64 ``(m,)``, position of each chain's first target.
        values: int64 ``(v,)``, the concepts of all chains, one chain after the other.
    """

    chains: np.ndarray
    split: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    first: np.ndarray
    values: np.ndarray

    def examples(self, split: str, min_context: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Last concept and target of each OCP sequence of a split, int64 ``(n,)`` each.

        ``min_context`` as in `Dataset.examples`.
        """
        at, _ = self._targets(split, min_context)
        return self.values[at - 1], self.values[at]

    def steps(self, split: str, min_context: int | None = None) -> np.ndarray:
        """The concept before the last, the last, and the target, of `examples`, int64 ``(n, 3)``.

        -1 stands for no concept before the last.
        """
        at, starts = self._targets(split, min_context)
        before = np.where(at - 2 >= starts, self.values[at - 2], -1)
        return np.stack([before, self.values[at - 1], self.values[at]], axis=1)

    def _targets(self, split: str, min_context: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Index in `values` of each target, and of the beginning of its chain."""
        rows = np.flatnonzero(self.split == SPLITS.index(split))
        first = first_targets(self.first[rows], self.lengths[rows], min_context)
        counts = self.lengths[rows] - first
        begins = np.repeat(self.starts[rows] + first - np.cumsum(counts) + counts, counts)
        return begins + np.arange(len(begins)), np.repeat(self.starts[rows], counts)


def chain_chunks(dataset: Dataset, title: str = "", progress: bool = False) -> Iterator[ChainChunk]:
    """Pass once over all chains; pages of a mapped dataset are released after each chunk.

    Args:
        dataset: in memory or mapped.
        title: title of the progress bar.
        progress: show a progress bar on standard error.
    """
    with tqdm(total=dataset.n_chains, desc=title, unit="chain",
              mininterval=TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
              disable=not progress) as bar:  # fmt: skip
        for begin in range(0, dataset.n_chains, CHAINS):
            end = min(begin + CHAINS, dataset.n_chains)
            offsets = dataset.chain_offsets[begin : end + 1]
            yield ChainChunk(
                chains=np.arange(begin, end),
                split=dataset.split[begin:end],
                lengths=np.diff(offsets),
                starts=offsets[:-1] - offsets[0],
                first=dataset.chain_first[begin:end].astype(np.int64),
                values=dataset.chain_values[offsets[0] : offsets[-1]].astype(np.int64),
            )
            dataset.release()
            bar.update(end - begin)


def count_examples(dataset: Dataset) -> dict[str, int]:
    """Number of OCP sequences of each split."""
    counts = np.zeros(len(SPLITS))
    for chunk in chain_chunks(dataset):
        counts += np.bincount(chunk.split, chunk.lengths - chunk.first, len(SPLITS))
    return {split: int(n) for split, n in zip(SPLITS, counts, strict=True)}


def train_targets(dataset: Dataset, min_context: int | None = None) -> np.ndarray:
    """Ids of all concepts that are a target in train, int64, ascending.

    ``min_context`` as in `Dataset.examples`.
    """
    found = np.zeros(dataset.n_concepts, bool)
    for chunk in chain_chunks(dataset):
        found[chunk.examples("train", min_context)[1]] = True
    return np.flatnonzero(found)


def train_steps(dataset: Dataset, most: int, min_context: int | None = None) -> np.ndarray:
    """All different steps of the train split, as `ChainChunk.steps`, int64 ``(n, 3)``, sorted.

    Of more than ``most``, those with the smallest hashes are kept: a uniform draw that does not
    depend on the order of the chains and needs memory for no more than a chunk and the kept ones.

    Source: Beyer et al., "On Synopses for Distinct-Value Estimation Under Multiset Operations",
    2007 (KMV).
    """
    kept = np.zeros((0, 3), np.int64)
    for chunk in chain_chunks(dataset):
        kept = np.unique(np.concatenate([kept, chunk.steps("train", min_context)]), axis=0)
        if len(kept) > most:
            smallest = np.argpartition(_hash(kept), most)[:most]
            kept = kept[np.sort(smallest)]
    return kept


def _hash(rows: np.ndarray) -> np.ndarray:
    """uint64 ``(n,)`` of int64 ``(n, k)``: a multiply and a shift for each column."""
    mixed = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        mixed = (mixed ^ column.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed
