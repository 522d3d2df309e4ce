"""What InfoNCE tells a target from: the train split's other targets, and hard negatives.

Hard negatives are bank rows near a target that do not follow its prefix-end, mined before training.
A *true continuation* of a prefix-end (the context's last concept) is a concept that follows it
somewhere in the train split. What follows it in val or test is not looked at: to spare those would
tell the model what it is evaluated on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.duplicates import find_duplicates
from ocp_mamba.data.chunks import count_examples, train_targets
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import ConfigError
from ocp_mamba.model.memory_head import MemoryHead

CHUNK = 1024
MOST_CANDIDATES = 16_384
"""Beyond as many train targets, a softmax over all of them would cost more than the model."""

MOST_KEPT = 65_536
"""Most train targets whose vectors are kept in memory of a bank on the disk: 200 MB."""

MOST_MINED, MOST_SEARCHED = 5_000_000, 1_000_000
"""Train sequences and concepts beyond which hard negatives are refused: they are kept in memory."""


@dataclass(frozen=True)
class HardNegatives:
    """The hard negatives of each (prefix-end, target) pair of the train split.

    Attributes:
        keys: int64 ``(n_pairs,)``, rising: prefix-end times ``n_concepts`` plus target.
        ids: int64 ``(n_pairs, K)``, bank ids, nearest to the target first; -1 where the bank has no
            more.
        n_concepts: rows of the bank.
    """

    keys: Tensor
    ids: Tensor
    n_concepts: int

    def of(self, last: Tensor, target: Tensor) -> Tensor:
        """Return the ids ``(M, K)`` for the examples with these prefix-ends and targets, ``(M,)``.

        Raises:
            ValueError: a pair is not one of the train split.
        """
        wanted = last * self.n_concepts + target
        rows = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        if not torch.equal(self.keys[rows], wanted):
            raise ValueError("hard negatives were mined for the train split's examples alone")
        return self.ids[rows]

    def to(self, device: torch.device) -> HardNegatives:
        """Return them on a device."""
        return replace(self, keys=self.keys.to(device), ids=self.ids.to(device))


@dataclass(frozen=True)
class NegativePool:
    """What the targets of a batch are told from.

    Attributes:
        hard: hard negatives of each example, or None for none.
        targets: int64 ``(n,)``, ascending ids of all the train split's targets; None where only the
            targets of the batch are told from each other.
        rows: float32 ``(n, 768)``, their vectors, where the bank lies on the disk: a batch draws
            thousands, each of which would be a read. There, of more than `MOST_KEPT` targets as
            many stand for all, drawn once by the seed of the training.
        remembered: whether the targets are what the model remembers, all of it, and are never too
            many: the softmax over them is then the one that it recalls by.
    """

    hard: HardNegatives | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None
    is_memory: bool = False

    def vectors(self, ids: Tensor, bank: Tensor) -> Tensor:
        """Return candidates' vectors, float32 ``(C, 768)``; those that are kept, from memory."""
        if self.rows is None or self.targets is None:
            return bank[ids]
        at = torch.searchsorted(self.targets, ids).clamp_max(len(self.targets) - 1)
        elsewhere = self.targets[at] != ids
        found = self.rows[at]
        found[elsewhere] = bank[ids[elsewhere]]
        return found

    def candidates(self, batch_targets: Tensor) -> Tensor:
        """Return the ascending ids that a batch's targets are told from; they are among them.

        Of more than `MOST_CANDIDATES` train targets as many are drawn, anew for each batch. The
        draw depends on nothing but the batch: processes that share it draw the same.
        """
        if self.targets is None:
            return torch.unique(batch_targets)
        if len(self.targets) <= MOST_CANDIDATES:
            return self.targets
        drawing = torch.Generator().manual_seed(int(batch_targets.sum()))
        drawn = torch.randint(len(self.targets), (MOST_CANDIDATES,), generator=drawing)
        return torch.unique(torch.cat([batch_targets, self.targets[drawn.to(self.targets.device)]]))

    def to(self, device: torch.device) -> NegativePool:
        """Return them on a device."""
        return replace(
            self,
            hard=None if self.hard is None else self.hard.to(device),
            targets=None if self.targets is None else self.targets.to(device),
            rows=None if self.rows is None else self.rows.to(device),
        )


NO_NEGATIVES = NegativePool()


def build_negative_pool(
    dataset: Dataset, config: TrainConfig, memory_head: MemoryHead | None = None
) -> NegativePool:
    """Return what a training by this config tells its targets from.

    A memory head remembers the train split's targets from here on: of more than it has room for as
    many, drawn the same for every training.
    """
    k, least = config.hard_negatives, config.min_context
    wanted = bool(config.infonce_weight) and config.infonce_candidates == "train"
    negative_pool = NO_NEGATIVES
    if config.infonce_weight and k:
        negative_pool = NegativePool(mine_negatives(dataset, k, least))
    if not wanted and memory_head is None:
        return negative_pool
    targets = train_targets(dataset, least)
    told_apart = targets if dataset.in_memory else some_of(targets, MOST_KEPT, config.seed)
    if wanted:
        rows = None if dataset.in_memory else torch.from_numpy(dataset.rows(told_apart))
        negative_pool = replace(negative_pool, targets=torch.from_numpy(told_apart), rows=rows)
    if memory_head is not None:
        answers = some_of(targets, memory_head.most)
        memory_head.set_memory(torch.from_numpy(dataset.rows(answers)))
        same = wanted and len(answers) <= MOST_CANDIDATES and np.array_equal(answers, told_apart)
        negative_pool = replace(negative_pool, is_memory=same)
    return negative_pool


def some_of(ids: np.ndarray, most: int, seed: int = 0) -> np.ndarray:
    """Return ascending ids, int64 ``(n,)``; of more than ``most`` as many, drawn by the seed."""
    if len(ids) > most:
        ids = np.sort(np.random.default_rng(seed).choice(ids, most, replace=False))
    return ids


def mine_negatives(dataset: Dataset, k: int, min_context: int | None = None) -> HardNegatives:
    """Find the k bank rows nearest to each train target that do not continue its prefix-end.

    Left out are the true continuations of the prefix-end, of which the target is one, and the rows
    with the vector of one, but for rounding: nothing could tell them apart.

    Args:
        dataset: its whole bank is searched, exactly; its train split says what continues what.
        k: 1 or more.
        min_context: fewest concepts of context of an example; None for the dataset's own rule.

    Raises:
        ConfigError: the dataset is too large to be mined: memory grows with the train sequences.
    """
    n = dataset.n_concepts
    sequences = count_examples(dataset)["train"]
    if sequences > MOST_MINED or n > MOST_SEARCHED:
        raise ConfigError(
            f"hard negatives are mined for at most {MOST_MINED:,} train sequences in a bank of at "
            f"most {MOST_SEARCHED:,} concepts; this dataset has {sequences:,} and {n:,}: train "
            "without --hard-negatives, or on a part of it"
        )
    examples = dataset.examples("train", min_context)
    keys = np.unique(examples.last.astype(np.int64) * n + examples.target)
    last, target = np.divmod(keys, n)
    same, _ = find_duplicates(dataset.bank)
    continued = np.unique(last * n + same[target])
    continuations = np.searchsorted(last, last, "right") - np.searchsorted(last, last, "left")
    index = BankIndex(dataset.bank)
    ids = np.full((len(keys), k), -1, np.int64)
    by_continuations = np.argsort(continuations, kind="stable")
    for start in range(0, len(keys), CHUNK):
        rows = by_continuations[start : start + CHUNK]
        wide = k + int(continuations[rows].max())
        while True:
            _, found = index.search(dataset.bank[target[rows]], wide)
            fit = ~np.isin(last[rows, None] * n + same[found], continued)
            if wide >= n or (fit.sum(axis=1) >= k).all():
                break
            wide *= 2
        nearest = np.argsort(~fit, axis=1, kind="stable")[:, :k]
        chosen = np.where(
            np.take_along_axis(fit, nearest, 1), np.take_along_axis(found, nearest, 1), -1
        )
        ids[rows, : chosen.shape[1]] = chosen
    return HardNegatives(torch.from_numpy(keys), torch.from_numpy(ids), n)
