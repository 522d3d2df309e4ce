"""Datasets with other train chains: a few of their own, or those of two datasets together."""

from __future__ import annotations

import numpy as np

from ocp_mamba.data.analysis.subset import part_of
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError


def draw_train_chains(dataset: Dataset, number: int, seed: int) -> np.ndarray:
    """Draw chains of the train split; a larger number draws the same chains and further ones.

    Returns:
        int64 ``(number,)``, ascending ids.

    Raises:
        DatasetError: the train split has fewer chains.
    """
    chains = dataset.chains_in("train")
    if not 1 <= number <= len(chains):
        raise DatasetError(f"{number} train chains wanted, the dataset has {len(chains)}")
    drawn = np.random.default_rng(seed).permutation(chains)[:number]
    return np.sort(drawn)


def with_train_chains(dataset: Dataset, chains: np.ndarray) -> Dataset:
    """Return the dataset with these chains alone in its train split; val, test and bank are kept.

    Args:
        dataset: the whole.
        chains: int64 ``(m,)``, ids of train chains.
    """
    kept = np.union1d(chains, np.flatnonzero(dataset.split != 0))
    return _part(dataset, kept)


def joined_train(one: Dataset, other: Dataset) -> Dataset:
    """Return one dataset of the train chains of two, over both banks, without TMD or relations.

    The two must be of one encoder. A concept that both have stands in the bank twice.
    """
    parts = [_part(dataset, dataset.chains_in("train")) for dataset in (one, other)]
    shift, flat = parts[0].n_concepts, len(parts[0].chain_values)
    values = [parts[0].chain_values, parts[1].chain_values + np.int32(shift)]
    offsets = [parts[0].chain_offsets, parts[1].chain_offsets[1:] + flat]
    return Dataset(
        bank=np.concatenate([part.bank for part in parts]),
        texts=np.concatenate([part.texts for part in parts]),
        chain_values=np.concatenate(values),
        chain_offsets=np.concatenate(offsets),
        chain_source=np.concatenate(
            [np.full(part.n_chains, i, np.uint8) for i, part in enumerate(parts)]
        ),
        chain_tmd=None,
        split=np.concatenate([part.split for part in parts]),
        meta={k: v for k, v in one.meta.items() if k != "relations"}
        | {"sources": ["first", "second"]},
        chain_first=np.concatenate([part.chain_first for part in parts]),
        bank_dtype="float32",
    )


def _part(dataset: Dataset, chains: np.ndarray) -> Dataset:
    """Some chains over the whole bank."""
    meta = dataset.meta | {"train_chains_of": dataset.fingerprint}
    return Dataset(**part_of(dataset, chains, np.arange(dataset.n_concepts)), meta=meta)
