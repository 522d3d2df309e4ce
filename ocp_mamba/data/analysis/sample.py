"""A sample to evaluate on, of a dataset too large to be evaluated whole.

A sample is itself a small dataset in memory: some chains of each split, and a part of the bank, the
pool. Whether an example's transition occurs in train, or the example itself in another split, is
found by comparing it with all chains of the whole dataset, and stored in the sample.
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
from ocp_mamba.data.hashing import mix

LARGEST_KEY = 2**64 - 1


@dataclass(frozen=True)
class EvalLimits:
    """How much is evaluated at most; 0 sets no limit.

    Attributes:
        sequences: most sequences that are evaluated, of val and of test each.
        train: most train sequences that baselines without a gradient learn from.
        pool: most concepts that retrieval searches.
        seed: seed of the random draw.
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
    """What a sample holds, and of how much.

    Attributes:
        of: fingerprint of the whole dataset.
        fingerprint: fingerprint of the sample; the same for the same drawn chains and concepts.
        sequences: for each split, how many sequences were drawn, and how many there are.
        concepts: how many concepts were drawn, and how many there are.
        seed: seed of the random draw.
    """

    of: str
    fingerprint: str
    sequences: dict[str, tuple[int, int]]
    concepts: tuple[int, int]
    seed: int

    def __str__(self) -> str:
        """One line for a person to read."""
        drawn = {split: _of(*pair) for split, pair in self.sequences.items()}
        return (
            f"a sample (seed {self.seed}, {self.fingerprint[:12]}): val {drawn['val']} and test "
            f"{drawn['test']} sequences, retrieval among {_of(*self.concepts)} concepts, cheap "
            f"baselines learnt from {drawn['train']} train sequences"
        )

    def tags(self) -> dict[str, str]:
        """Tags of an MLflow run that name the sample."""
        return {
            "sample.fingerprint": self.fingerprint,
            "sample.seed": str(self.seed),
            "sample.pool": f"{_of(*self.concepts)} concepts",
            **{f"sample.{s}": f"{_of(*pair)} sequences" for s, pair in self.sequences.items()},
        }

    def to_dict(self) -> dict[str, Any]:
        """The sample as plain JSON, with its line for a person."""
        return {**asdict(self), "said": str(self)}


def _of(some: int, every: int) -> str:
    return f"all {every:,}" if some == every else f"{some:,} of {every:,}"


@dataclass(frozen=True, eq=False)
class SampledDataset(Dataset):
    """A sample, and what its examples share with the whole dataset.

    Attributes:
        sample: what was drawn.
        chains: int64 ``(n_chains,)``, ascending: the id that each chain has in the whole dataset.
        overlap: uint8, as long as ``chain_values``: the bits of `overlap_with_dataset`.
        unused: concepts of the whole bank that occur in no chain.
    """

    sample: Sample = field(default_factory=lambda: Sample("", "", {}, (0, 0), 0))
    chains: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    overlap: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))
    unused: int = 0

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the sample; that of the whole dataset is ``sample.of``."""
        return self.sample.fingerprint

    def overlaps(self, examples: Examples, bit: int) -> np.ndarray:
        """Whether a bit of ``overlap`` is set for each example, bool ``(n,)``."""
        return self.overlap[self.chain_offsets[examples.chain] + examples.position] & bit > 0


def sample_of(dataset: Dataset) -> Sample | None:
    """What a sampled dataset was drawn from; None for a whole dataset."""
    return dataset.sample if isinstance(dataset, SampledDataset) else None


def evaluation_part(dataset: Dataset, limits: EvalLimits, *, progress: bool = False) -> Dataset:
    """Return the dataset to evaluate on: the whole, or a sample where it exceeds a limit.

    Chains that differ only in their first concept are drawn together, in an order given by a hash
    and the seed, until the limit is reached. The pool holds the concepts of the drawn chains, and
    random other concepts up to its limit; it is larger where these chains have more concepts.
    Splits and banks within their limits are taken whole.

    Args:
        dataset: in memory or mapped.
        limits: how much is evaluated at most.
        progress: show progress bars.

    Returns:
        ``dataset`` itself, or a `SampledDataset`. The same content gives the same sample, whether
        it comes from a file or from a folder.
    """
    counts = count_examples(dataset)
    large = {s: limits.of(s) for s in SPLITS if 0 < limits.of(s) < counts[s]}
    if not large and not 0 < limits.pool < dataset.n_concepts:
        return dataset
    chains = _draw_chains(dataset, large, counts, limits.seed, progress)
    places, _ = places_of(dataset, chains)
    concepts = _draw_concepts(dataset, np.unique(dataset.chain_values[places]), limits)
    overlap, used = overlap_with_dataset(dataset, chains, progress=progress)
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
    return SampledDataset(
        **fields,
        meta=dataset.meta,
        sample=sample,
        chains=chains,
        overlap=overlap,
        unused=dataset.n_concepts - used,
    )


def _draw_chains(
    dataset: Dataset, large: dict[str, int], counts: dict[str, int], seed: int, progress: bool
) -> np.ndarray:
    """Ids of the drawn chains, ascending; every chain of a split that is not large."""
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
    """The chains of the first groups, by key, that have at most ``limit`` sequences together.

    If the first group alone has more, as many of its chains as fit; always at least one chain.
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
    """The limit below which this share of all keys lies."""
    return LARGEST_KEY if share >= 1 else int(share * 2**64)


def _keys(values: np.ndarray, starts: np.ndarray, seed: int) -> np.ndarray:
    """A hash of all concepts but the first of each chain, uint64 ``(m,)``.

    Each concept and its position are mixed, see `mix`, and added up.
    """
    lengths = np.diff(np.append(starts, len(values)))
    place = np.arange(len(values)) - np.repeat(starts, lengths)
    mixed = mix(values.astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32)))
    both = np.stack([starts, starts + 1], axis=1).ravel()
    tails: np.ndarray = np.add.reduceat(mixed, both)[1::2]
    return mix(tails + mix(np.array([seed], np.uint64)))


def _draw_concepts(dataset: Dataset, used: np.ndarray, limits: EvalLimits) -> np.ndarray:
    """Concept ids of the pool, ascending: those used, and others drawn up to the limit."""
    n = dataset.n_concepts
    if not 0 < limits.pool < n:
        return np.arange(n)
    others = max(0, limits.pool - len(used))
    drawn = np.random.default_rng(limits.seed).choice(n - len(used), others, replace=False)
    gaps = used - np.arange(len(used))  # how many unused concepts are below each used one
    drawn += np.searchsorted(gaps, drawn, side="right")
    return np.sort(np.concatenate([used.astype(np.int64), drawn]))
