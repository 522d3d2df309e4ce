"""A part of a dataset as a dataset of its own: fewer concepts, and the chains made of them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.data.split import chain_groups
from ocp_mamba.errors import DatasetError


@dataclass(frozen=True)
class Subset:
    """A part of a dataset.

    Attributes:
        dataset: the part. Its bank holds the concepts of its chains alone, in the whole's order.
        chains: int64 ``(n_chains,)``, ascending: the id that each chain has in the whole dataset.
    """

    dataset: Dataset
    chains: np.ndarray


def draw_subset(dataset: Dataset, share: float, seed: int = 0) -> Subset:
    """Draw families of chains until their concepts are a share of all concepts.

    Families (chains that share an example, and siblings, see `chain_groups`) are drawn whole and in
    random order, from train, val and test alike, so that the part is as varied as the whole and no
    example straddles its splits. The last family drawn reaches the share. Chains
    keep their split. Concepts high in an ontology occur in many chains, so half of the concepts
    have fewer than half of the chains.

    Args:
        dataset: the whole dataset.
        share: share of the concepts that occur in chains, above 0 and below 1.
        seed: seed of the random order.

    Raises:
        DatasetError: the share is out of range, or the dataset has too few families to leave one
            out.
    """
    if not 0 < share < 1:
        raise DatasetError(f"share must be above 0 and below 1, got {share}")
    chosen = _draw_chains(dataset, share, seed)
    if chosen.all():
        raise DatasetError(
            f"{dataset.n_chains:,} chains cannot be halved: all of them are one family, or reach "
            f"{share:.0%} of the concepts only together"
        )
    chains = np.flatnonzero(chosen)
    concepts = np.unique(dataset.chain_values[places_of(dataset, chains)[0]])
    part = Dataset(**part_of(dataset, chains, concepts), meta=dataset.meta)
    sequences = {split: part.n_examples(split) for split in SPLITS}
    counts = {"concepts": part.n_concepts, "chains": part.n_chains, "sequences": sequences}
    origin = {"of": dataset.fingerprint, "share": share, "seed": seed}
    return Subset(replace(part, meta=dataset.meta | {"counts": counts, "subset": origin}), chains)


def _draw_chains(dataset: Dataset, share: float, seed: int) -> np.ndarray:
    """Which chains are drawn, bool ``(n_chains,)``."""
    groups = chain_groups(
        dataset.chain_values, dataset.chain_offsets, dataset.chain_first, join_siblings=True
    )
    wanted = share * len(np.unique(dataset.chain_values))
    chains_of: dict[int, list[int]] = defaultdict(list)
    for chain, group in enumerate(groups.tolist()):
        chains_of[group].append(chain)
    order = np.random.default_rng(seed).permutation(list(chains_of))
    chosen = np.zeros(dataset.n_chains, bool)
    found: set[int] = set()
    for group in order.tolist():
        if len(found) >= wanted:
            break
        for chain in chains_of[group]:
            chosen[chain] = True
            found.update(dataset.chain(chain).tolist())
    return chosen


def part_of(dataset: Dataset, chains: np.ndarray, concepts: np.ndarray) -> dict[str, Any]:
    """Return the fields of a dataset of some chains and some concepts, in memory, without meta.

    Args:
        dataset: the whole dataset, in memory or mapped.
        chains: int64 ``(m,)``, ids of chains, ascending.
        concepts: ``(c,)``, bank ids, ascending; they include all concepts of the chains.
    """
    places, lengths = places_of(dataset, chains)
    fields: dict[str, Any] = {
        "bank": dataset.rows(concepts),
        "texts": dataset.texts[concepts],
        "chain_values": np.searchsorted(concepts, dataset.chain_values[places]).astype(np.int32),
        "chain_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "bank_dtype": dataset.bank_dtype,
    }
    rows = {"chain_source": chains, "chain_tmd": chains, "split": chains, "chain_first": chains}
    rows |= {"chain_relation": places, "chain_confidence": places}
    for name, at in rows.items():
        array = getattr(dataset, name)
        fields[name] = None if array is None else array[at]
    dataset.release()
    return fields


def places_of(dataset: Dataset, chains: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices into ``chain_values`` of the concepts of chains, int64, and the chains' lengths."""
    begins = dataset.chain_offsets[chains]
    lengths = dataset.chain_offsets[chains + 1] - begins
    shift = np.repeat(begins - np.cumsum(lengths) + lengths, lengths)
    return shift + np.arange(len(shift)), lengths
