"""A sample to evaluate on, of a dataset too large to be evaluated whole.

It is a dataset itself, in memory, and small: chains of each split, and a pool of the bank. What an
example has to do with the rest of the data (was its transition met in train, does it stand in
another split) is worked out against the whole, chain by chain, and carried with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ocp_mamba.data.analysis.overlap import overlap_with_dataset
from ocp_mamba.data.analysis.subset import part_of, places_of
from ocp_mamba.data.chunks import chain_chunks, count_examples
from ocp_mamba.data.dataset import SPLITS, Dataset, Examples

MIX = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
LARGEST_KEY = 2**64 - 1


@dataclass(frozen=True)
class EvalLimits:
    """What is evaluated whole; 0 sets no limit.

    Attributes:
        sequences: of val, and of test: the most that are evaluated.
        train: sequences of train: the most that baselines without a gradient learn from.
        pool: concepts: the most that retrieval searches.
        seed: of the draw.
    """

    sequences: int = 10_000
    train: int = 40_000
    pool: int = 100_000
    seed: int = 0

    def of(self, split: str) -> int:
        """Return the limit of a split, in sequences."""
        return self.train if split == "train" else self.sequences


@dataclass(frozen=True)
class Sample:
    """What a sample holds, of how much.

    Attributes:
        of: fingerprint of the whole dataset.
        fingerprint: of the sample: two are one when the same chains and concepts were drawn.
        sequences: of each split, drawn and all.
        concepts: drawn and all.
        seed: of the draw.
    """

    of: str
    fingerprint: str
    sequences: dict[str, tuple[int, int]]
    concepts: tuple[int, int]
    seed: int

    def __str__(self) -> str:
        """Say it in one line, for a person."""
        drawn = {split: _of(*pair) for split, pair in self.sequences.items()}
        return (
            f"a sample (seed {self.seed}, {self.fingerprint[:12]}): val {drawn['val']} and test "
            f"{drawn['test']} sequences, retrieval among {_of(*self.concepts)} concepts, cheap "
            f"baselines learnt from {drawn['train']} train sequences"
        )

    def tags(self) -> dict[str, str]:
        """Return what a run's tags say of it."""
        return {
            "sample.fingerprint": self.fingerprint,
            "sample.seed": str(self.seed),
            "sample.pool": f"{_of(*self.concepts)} concepts",
            **{f"sample.{s}": f"{_of(*pair)} sequences" for s, pair in self.sequences.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON, with its sentence."""
        return {**asdict(self), "said": str(self)}


def _of(some: int, every: int) -> str:
    return f"all {every:,}" if some == every else f"{some:,} of {every:,}"


@dataclass(frozen=True, eq=False)
class SampledDataset(Dataset):
    """A sample, and what the whole knows of its examples.

    Attributes:
        sample: what was drawn.
        chains: int64 ``(n_chains,)``, rising: which chain of the whole each of its chains is.
        met: uint8, as long as ``chain_values``, see `data.met.meet`.
        unused: concepts of the whole bank that stand in no chain.
    """

    sample: Sample = field(default_factory=lambda: Sample("", "", {}, (0, 0), 0))
    chains: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    met: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    unused: int = 0

    @property
    def fingerprint(self) -> str:
        """The sample's; the whole's is ``sample.of``."""
        return self.sample.fingerprint

    def met_by(self, examples: Examples, bit: int) -> np.ndarray:
        """Whether a bit of ``met`` is set for each example, bool ``(n,)``."""
        return self.met[self.chain_offsets[examples.chain] + examples.position] & bit > 0


def sample_of(dataset: Dataset) -> Sample | None:
    """What a dataset was drawn from; None for one that is whole."""
    return dataset.sample if isinstance(dataset, SampledDataset) else None


def evaluation_part(dataset: Dataset, limits: EvalLimits, *, progress: bool = False) -> Dataset:
    """Return the dataset to evaluate on: the whole, or a sample where it exceeds a limit.

    Chains are drawn by families as far as they can be told from a chain alone: those that differ in
    their first concept only are drawn together, in an order by hash and seed, until the limit is
    reached. The pool is the concepts of the chains drawn, and others at random up to its limit; it
    is larger where these chains have more. What exceeds no limit is taken whole.

    Args:
        dataset: in memory or mapped.
        limits: what is evaluated whole.
        progress: show progress bars.

    Returns:
        ``dataset`` itself, or a `SampledDataset`. One dataset, content for content, gives one
        sample, be it a file or a folder.
    """
    counts = count_examples(dataset)
    large = {s: limits.of(s) for s in SPLITS if 0 < limits.of(s) < counts[s]}
    if not large and not 0 < limits.pool < dataset.n_concepts:
        return dataset
    chains = _draw_chains(dataset, large, counts, limits.seed, progress)
    places, _ = places_of(dataset, chains)
    concepts = _draw_concepts(dataset, np.unique(dataset.chain_values[places]), limits)
    met, used = overlap_with_dataset(dataset, chains, progress=progress)
    fields = part_of(dataset, chains, concepts)
    digest = hashlib.sha256(dataset.fingerprint.encode())
    digest.update(chains.astype("<i8").tobytes() + concepts.astype("<i8").tobytes())
    taken = np.bincount(
        fields["split"],
        np.diff(fields["chain_offsets"]) - fields["chain_first"],
        len(SPLITS),
    )
    drawn = {s: (int(n), counts[s]) for s, n in zip(SPLITS, taken, strict=True)}
    sample = Sample(
        dataset.fingerprint,
        digest.hexdigest(),
        drawn,
        (len(concepts), dataset.n_concepts),
        limits.seed,
    )
    return SampledDataset(**fields, meta=dataset.meta, sample=sample, chains=chains, met=met,
                          unused=dataset.n_concepts - used)  # fmt: skip


def _draw_chains(
    dataset: Dataset, large: dict[str, int], counts: dict[str, int], seed: int, progress: bool
) -> np.ndarray:
    """Ids of the chains drawn, rising: all of a split that is not large."""
    shares = {split: 2 * limit / counts[split] for split, limit in large.items()}
    while True:
        most = np.array([_share_of_keys(shares.get(split, 1.0)) for split in SPLITS], np.uint64)
        found: list[tuple[np.ndarray, ...]] = []
        for chunk in chain_chunks(dataset, "drawing a sample", progress):
            keys = _keys(chunk.values, chunk.starts, seed)
            low = keys <= most[chunk.split]
            n = chunk.lengths - chunk.first
            found.append((chunk.chains[low], chunk.split[low], keys[low], n[low]))
        chains, splits, keys, n = (np.concatenate(parts) for parts in zip(*found, strict=True))
        kept = {}
        for number, split in enumerate(SPLITS):
            mine = splits == number
            if split not in large:
                kept[split] = chains[mine]
            elif n[mine].sum() >= large[split] or shares[split] >= 1:
                kept[split] = _whole_groups(chains[mine], keys[mine], n[mine], large[split])
            else:
                shares[split] *= 4
        if len(kept) == len(SPLITS):
            return np.sort(np.concatenate(list(kept.values())))


def _whole_groups(chains: np.ndarray, keys: np.ndarray, n: np.ndarray, limit: int) -> np.ndarray:
    """The chains of the first groups, by key, that have no more than ``limit`` sequences together.

    Of a first group that alone has more, as many chains as fit; one chain in any case.
    """
    order = np.lexsort((chains, keys))
    keys, total = keys[order], np.cumsum(n[order])
    fits = total <= limit
    cut = keys == keys[np.argmin(fits)] if not fits.all() else ~fits
    whole = fits & ~cut
    if not whole.any():
        whole = fits if fits.any() else np.arange(len(fits)) == 0
    return chains[order[whole]]


def _share_of_keys(share: float) -> int:
    """The key that a share of all keys does not exceed."""
    return LARGEST_KEY if share >= 1 else int(share * 2**64)


def _keys(values: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
    """A hash of all concepts but the first of each chain, uint64 ``(m,)``.

    Each concept and its place are mixed as in Steele et al., "Fast Splittable Pseudorandom Number
    Generators", 2014 (SplitMix64), and added up.
    """
    lengths = np.diff(np.append(starts, len(values)))
    place = np.arange(len(values)) - np.repeat(starts, lengths)
    mixed = _mix(values.astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32)))
    both = np.stack([starts, starts + 1], axis=1).ravel()
    tails: np.ndarray = np.add.reduceat(mixed, both)[1::2]
    return _mix(tails + _mix(np.array([seed], np.uint64)))


def _mix(x: np.ndarray) -> np.ndarray:
    add, one, other = (np.uint64(c) for c in MIX)
    x = x + add
    x = (x ^ (x >> np.uint64(30))) * one
    x = (x ^ (x >> np.uint64(27))) * other
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def _draw_concepts(dataset: Dataset, used: np.ndarray, limits: EvalLimits) -> np.ndarray:
    """Ids of the pool, rising: those used, and others drawn up to the limit."""
    n = dataset.n_concepts
    if not 0 < limits.pool < n:
        return np.arange(n)
    others = max(0, limits.pool - len(used))
    drawn = np.random.default_rng(limits.seed).choice(n - len(used), others, replace=False)
    gaps = used - np.arange(len(used))  # how many unused concepts are below each used one
    drawn += np.searchsorted(gaps, drawn, side="right")
    return np.sort(np.concatenate([used.astype(np.int64), drawn]))
