"""What a model learnt from, as hashes of concept texts that its file carries.

Whether an example was learnt is then known of any evaluation: on another dataset, with another
split, or out of a file that was built again. Texts are compared in a normal form, see
`data.hashing.normal_form`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch

from ocp_mamba.data.chunks import ChainChunk, chain_chunks
from ocp_mamba.data.dataset import SPLITS, Dataset, first_targets
from ocp_mamba.data.hashing import extend, mix, prefix_hashes, text_hashes
from ocp_mamba.errors import DatasetError

FORM = "text-sequences-1"
"""Names how the hashes are made; a file of another form is not compared with."""

EXACT_UP_TO = 1_000_000
"""Hashes that a set holds one by one, 8 bytes each; a larger set becomes a Bloom filter."""

BLOOM_BITS, BLOOM_PROBES = 24, 10
"""Bits for each hash of a Bloom filter, and bits that each hash sets: an error rate of 2e-5."""

TEXTS_AT_ONCE = 1 << 16
SETS = ("transitions", "targets", "examples")


class HashSet(Protocol):
    """Some 64-bit hashes."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    @property
    def error_rate(self) -> float:
        """Share of other hashes that are taken for one of these."""
        ...

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Whether each of some hashes, uint64 ``(n,)``, is one of the set: bool ``(n,)``."""
        ...

    def to_block(self) -> dict[str, Any]:
        """The set as plain values and tensors."""
        ...


@dataclass(frozen=True, eq=False)
class ExactHashes:
    """A set that holds each hash: uint64 ``(count,)``, ascending."""

    hashes: np.ndarray
    error_rate = 0.0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.hashes)

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Whether each of some hashes, uint64 ``(n,)``, is one of the set: bool ``(n,)``."""
        if not len(self.hashes):
            return np.zeros(len(hashes), bool)
        at = np.minimum(np.searchsorted(self.hashes, hashes), len(self.hashes) - 1)
        found: np.ndarray = self.hashes[at] == hashes
        return found

    def to_block(self) -> dict[str, Any]:
        """The set as plain values and tensors; the hashes' 64 bits are stored as int64."""
        return {"count": self.count, "hashes": torch.from_numpy(self.hashes.view(np.int64))}


class BloomFilter:
    """A set of many hashes in a few bits each, which takes some other hashes for its own.

    Source: Bloom, "Space/Time Trade-offs in Hash Coding with Allowable Errors", 1970.
    """

    def __init__(self, bits: np.ndarray, count: int, probes: int = BLOOM_PROBES) -> None:
        """Wrap the bits, uint8 ``(n_bytes,)``, of ``count`` hashes."""
        self.bits, self._count, self._probes = bits, count, probes

    @classmethod
    def for_at_most(cls, count: int) -> BloomFilter:
        """Return an empty filter with room for so many hashes."""
        return cls(np.zeros(max(1, count * BLOOM_BITS // 8), np.uint8), 0)

    def copy(self) -> BloomFilter:
        """Return a filter of the same hashes that grows by itself."""
        return BloomFilter(self.bits.copy(), self._count, self._probes)

    @property
    def count(self) -> int:
        """How many were added."""
        return self._count

    @property
    def error_rate(self) -> float:
        """Share of other hashes that are taken for one of these, by the bits that are set."""
        filled = sum(int(np.unpackbits(part).sum()) for part in np.array_split(self.bits, 64))
        return float((filled / (8 * len(self.bits))) ** self._probes)

    def add(self, hashes: np.ndarray) -> None:
        """Add hashes, uint64 ``(n,)``; ``count`` grows by those that were not in it."""
        self._count += int((~self.holds(hashes)).sum())
        for place in self._places(hashes):
            np.bitwise_or.at(self.bits, place >> 3, np.uint8(1) << (place & 7).astype(np.uint8))

    def holds(self, hashes: np.ndarray) -> np.ndarray:
        """Whether each of some hashes, uint64 ``(n,)``, is one of the set: bool ``(n,)``."""
        found = np.ones(len(hashes), bool)
        for place in self._places(hashes):
            found &= (self.bits[place >> 3] >> (place & 7).astype(np.uint8)) & 1 > 0
        return found

    def _places(self, hashes: np.ndarray) -> list[np.ndarray]:
        step, n = mix(hashes) | np.uint64(1), np.uint64(8 * len(self.bits))
        return [((hashes + np.uint64(i) * step) % n).astype(np.int64) for i in range(self._probes)]

    def to_block(self) -> dict[str, Any]:
        """The set as plain values and tensors."""
        return {
            "count": self.count,
            "bits": torch.from_numpy(self.bits),
            "probes": self._probes,
            "error_rate": self.error_rate,
        }


@dataclass(frozen=True, eq=False)
class Learnt:
    """What a predictor learnt from.

    Attributes:
        transitions: pairs of texts that follow one another in a train chain, the first step of each
            chain included.
        targets: texts that follow another one in a train chain.
        examples: contexts with their target, of ``min_context`` concepts of context or more.
        min_context: fewest concepts of context that were learnt from; None for the dataset's rule.
    """

    transitions: HashSet
    targets: HashSet
    examples: HashSet
    min_context: int | None

    @property
    def error_rate(self) -> float:
        """The highest share of other hashes that one of the sets takes for its own."""
        return max(getattr(self, name).error_rate for name in SETS)

    def strata(self, dataset: Dataset, split: str) -> dict[str, np.ndarray]:
        """Group the examples of a split by what of them was learnt.

        Returns:
            Three bool arrays over ``dataset.examples(split)``, as `leakage.strata`.
        """
        examples, texts = dataset.examples(split), _texts_of(dataset)
        last, target = _of(texts[examples.last]), texts[examples.target]
        seen = self.transitions.holds(extend(last, target))
        known = self.targets.holds(_of(target))
        return {"seen": seen, "unseen": ~seen, "unseen_target": ~known & ~seen}

    def examples_of(self, dataset: Dataset, split: str) -> np.ndarray:
        """Which examples of a split were learnt, context and target, bool ``(n_examples,)``."""
        examples = dataset.examples(split)
        chains, place = np.unique(examples.chain, return_inverse=True)
        lengths = dataset.lengths[chains]
        starts = np.cumsum(lengths) - lengths
        ids = [dataset.chain(int(i)) for i in chains]
        texts = _texts_of(dataset)[np.concatenate(ids)] if ids else np.zeros(0, np.uint64)
        hashes = prefix_hashes(texts, starts, lengths)
        return self.examples.holds(hashes[starts[place] + examples.position])

    def joined(self, other: Learnt) -> Learnt:
        """Return what was learnt from here or there; ``min_context`` stays.

        Raises:
            DatasetError: both have more than `EXACT_UP_TO` hashes.
        """
        sets = {name: _joined(getattr(self, name), getattr(other, name)) for name in SETS}
        return Learnt(**sets, min_context=self.min_context)

    def to_block(self) -> dict[str, Any]:
        """Return plain values and tensors for a ``.pt``; `from_block` reads them."""
        sets = {name: getattr(self, name).to_block() for name in SETS}
        return {"form": FORM, "min_context": self.min_context, **sets}

    @classmethod
    def from_block(cls, block: Mapping[str, Any]) -> Learnt:
        """Read what `to_block` wrote.

        Raises:
            DatasetError: the block is of another form, or is damaged.
        """
        if block.get("form") != FORM:
            raise DatasetError(
                f"the hashes of what it learnt from have the form {block.get('form')!r}, this "
                f"version reads {FORM!r}"
            )
        try:
            sets = {name: _read_set(block[name]) for name in SETS}
            return cls(**sets, min_context=block["min_context"])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DatasetError(
                f"the hashes of what it learnt from are damaged: {type(error).__name__}: {error}"
            ) from error


def _joined(one: HashSet, other: HashSet) -> HashSet:
    """The hashes of either set; a Bloom filter takes those of an exact set."""
    if isinstance(one, ExactHashes) and isinstance(other, ExactHashes):
        return ExactHashes(np.union1d(one.hashes, other.hashes))
    exact, large = (one, other) if isinstance(one, ExactHashes) else (other, one)
    if not isinstance(exact, ExactHashes) or not isinstance(large, BloomFilter):
        raise DatasetError(
            f"hashes of what was learnt from {one.count:,} and {other.count:,} train sequences "
            f"cannot be joined: one of the two may have {EXACT_UP_TO:,} at most"
        )
    found = large.copy()
    found.add(exact.hashes)
    return found


def _read_set(block: Mapping[str, Any]) -> HashSet:
    if "bits" in block:
        return BloomFilter(block["bits"].numpy(), int(block["count"]), int(block["probes"]))
    hashes = block["hashes"].numpy().view(np.uint64)
    if len(hashes) != block["count"] or (hashes[1:] <= hashes[:-1]).any():
        raise ValueError(f"{len(hashes)} hashes, or not ascending; {block['count']} wanted")
    return ExactHashes(hashes)


_MADE: WeakKeyDictionary[Dataset, dict[int | None, Learnt]] = WeakKeyDictionary()
_TEXTS: WeakKeyDictionary[Dataset, np.ndarray] = WeakKeyDictionary()


def learnt_from(dataset: Dataset, min_context: int | None = None) -> Learnt:
    """Return what a training on a dataset's train split learns from, in one pass over its chains.

    Args:
        dataset: in memory or mapped.
        min_context: fewest concepts of context, as `TrainConfig.min_context`; None for the
            dataset's own rule, as baselines without a gradient learn.
    """
    made = _MADE.setdefault(dataset, {})
    if min_context not in made:
        made[min_context] = _learn(dataset, min_context)
    return made[min_context]


def _learn(dataset: Dataset, min_context: int | None) -> Learnt:
    texts = _texts_of(dataset)
    train = dataset.split == SPLITS.index("train")
    at_most = int((dataset.lengths - 1)[train].sum())
    sets = {name: _Collected(at_most) for name in SETS}
    for chunk in chain_chunks(dataset):
        last, target = chunk.examples("train", min_context=1)
        sets["transitions"].add(extend(_of(texts[last]), texts[target]))
        sets["targets"].add(_of(texts[target]))
        sets["examples"].add(_example_hashes(chunk, texts, min_context))
    return Learnt(**{name: s.finished() for name, s in sets.items()}, min_context=min_context)


def _example_hashes(chunk: ChainChunk, texts: np.ndarray, min_context: int | None) -> np.ndarray:
    """Hash the context and the target of each example that a training learns from a chunk."""
    rows = np.flatnonzero(chunk.split == SPLITS.index("train"))
    lengths = chunk.lengths[rows]
    first = first_targets(chunk.first[rows], lengths, min_context)
    hashes = prefix_hashes(texts[chunk.values], chunk.starts, chunk.lengths)
    counts = lengths - first
    begins = np.repeat(chunk.starts[rows] + first - np.cumsum(counts) + counts, counts)
    return hashes[begins + np.arange(len(begins))]


class _Collected:
    """Hashes as they come; beyond `EXACT_UP_TO` different ones they go into a Bloom filter."""

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._exact = np.zeros(0, np.uint64)
        self._filter: BloomFilter | None = None

    def add(self, hashes: np.ndarray) -> None:
        if self._filter is not None:
            self._filter.add(np.unique(hashes))
            return
        self._exact = np.union1d(self._exact, hashes)
        if len(self._exact) > EXACT_UP_TO:
            self._filter = BloomFilter.for_at_most(self._at_most)
            self._filter.add(self._exact)
            self._exact = np.zeros(0, np.uint64)

    def finished(self) -> HashSet:
        return ExactHashes(self._exact) if self._filter is None else self._filter


def _texts_of(dataset: Dataset) -> np.ndarray:
    """The hash of each concept's text, uint64 ``(n_concepts,)``; computed once for a dataset."""
    if dataset not in _TEXTS:
        starts = range(0, dataset.n_concepts, TEXTS_AT_ONCE)
        parts = [text_hashes(dataset.texts[i : i + TEXTS_AT_ONCE].tolist()) for i in starts]
        dataset.release()
        _TEXTS[dataset] = np.concatenate(parts)
    return _TEXTS[dataset]


def _of(texts: np.ndarray) -> np.ndarray:
    """Hashes of the sequences of one text each, uint64 ``(n,)``."""
    return extend(np.zeros(len(texts), np.uint64), texts)
