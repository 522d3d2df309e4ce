"""The negatives of InfoNCE: the other targets of the batch or of the train split, and hard ones.

Hard negatives are bank rows near a target that do not follow the example's last context concept;
they are mined before training. A *true continuation* of a last context concept is a concept that
follows it somewhere in the train split. Continuations in val and test are not looked up: to leave
them out would tell the model about the data that it is evaluated on.
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
MAX_CANDIDATES = 16_384
"""Most candidates of a batch: a softmax over more would cost more than the model."""

MAX_KEPT = 65_536
"""Most train targets of a bank on the disk whose vectors are kept in memory: 200 MB."""

MAX_MINED, MAX_SEARCHED = 5_000_000, 1_000_000
"""Most train sequences and concepts for hard negatives, which are kept in memory."""


@dataclass(frozen=True)
class HardNegatives:
    """The hard negatives of each pair of a last context concept and a target in the train split.

    Attributes:
        keys: int64 ``(n_pairs,)``, ascending: last concept times ``n_concepts`` plus target.
        ids: int64 ``(n_pairs, K)``, bank ids, nearest to the target first, padded with -1 where the
            bank has no more.
        n_concepts: rows of the bank.
    """

    keys: Tensor
    ids: Tensor
    n_concepts: int

    def of(self, last: Tensor, target: Tensor) -> Tensor:
        """Return the ids ``(M, K)`` for last context concepts and targets, ``(M,)`` each.

        Raises:
            ValueError: a pair is not in the train split.
        """
        wanted = last * self.n_concepts + target
        rows = torch.searchsorted(self.keys, wanted).clamp_max(len(self.keys) - 1)
        if not torch.equal(self.keys[rows], wanted):
            raise ValueError("hard negatives were mined for the examples of the train split only")
        return self.ids[rows]

    def to(self, device: torch.device) -> HardNegatives:
        """Return them on a device."""
        return replace(self, keys=self.keys.to(device), ids=self.ids.to(device))


@dataclass(frozen=True)
class NegativePool:
    """Where the candidates of InfoNCE come from.

    Attributes:
        hard: hard negatives of each example, or None for none.
        targets: int64 ``(n,)``, ascending ids of the train split's targets; None where the
            candidates are the targets of the batch only.
        rows: float32 ``(n, 768)``, the vectors of the targets, where the bank is on the disk: a
            batch draws thousands, each of which would be a read. Of more than `MAX_KEPT` targets,
            that many are drawn, once, by the seed of the training.
        is_memory: whether the candidates of every batch are exactly the rows of the memory head,
            so that its softmax is also that of InfoNCE.
    """

    hard: HardNegatives | None = None
    targets: Tensor | None = None
    rows: Tensor | None = None
    is_memory: bool = False

    def vectors(self, ids: Tensor, bank: Tensor) -> Tensor:
        """Return the candidates' vectors, float32 ``(C, 768)``, from ``rows`` where it has them."""
        if self.rows is None or self.targets is None:
            return bank[ids]
        places = torch.searchsorted(self.targets, ids).clamp_max(len(self.targets) - 1)
        absent = self.targets[places] != ids
        vectors = self.rows[places]
        vectors[absent] = bank[ids[absent]]
        return vectors

    def candidates(self, batch_targets: Tensor) -> Tensor:
        """Return the ascending ids of a batch's candidates, its own targets among them.

        Of more than `MAX_CANDIDATES` train targets, that many are drawn for each batch. The draw
        depends on the batch only, so that processes that share it draw the same.
        """
        if self.targets is None:
            return torch.unique(batch_targets)
        if len(self.targets) <= MAX_CANDIDATES:
            return self.targets
        generator = torch.Generator().manual_seed(int(batch_targets.sum()))
        drawn = torch.randint(len(self.targets), (MAX_CANDIDATES,), generator=generator)
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
    """Return where a training takes its candidates from, and fill the memory head.

    Args:
        dataset: its train split has the targets.
        config: which candidates, how many hard negatives, fewest concepts of context.
        memory_head: holds the train split's targets afterwards. Of more targets than it has room
            for, that many are drawn, the same for every training.

    Raises:
        ConfigError: as `mine_negatives`.
    """
    uses_train = bool(config.infonce_weight) and config.infonce_candidates == "train"
    pool = NO_NEGATIVES
    if config.infonce_weight and config.hard_negatives:
        pool = NegativePool(mine_negatives(dataset, config.hard_negatives, config.min_context))
    if not uses_train and memory_head is None:
        return pool
    targets = train_targets(dataset, config.min_context)
    candidates = targets if dataset.in_memory else _draw(targets, MAX_KEPT, config.seed)
    if uses_train:
        rows = None if dataset.in_memory else torch.from_numpy(dataset.rows(candidates))
        pool = replace(pool, targets=torch.from_numpy(candidates), rows=rows)
    if memory_head is not None:
        stored = _draw(targets, memory_head.max_rows)
        memory_head.set_memory(torch.from_numpy(dataset.rows(stored)))
        same = len(stored) <= MAX_CANDIDATES and np.array_equal(stored, candidates)
        pool = replace(pool, is_memory=uses_train and same)
    return pool


def _draw(ids: np.ndarray, limit: int, seed: int = 0) -> np.ndarray:
    """The ascending ids, int64 ``(n,)``; of more than the limit, that many drawn by the seed."""
    if len(ids) > limit:
        ids = np.sort(np.random.default_rng(seed).choice(ids, limit, replace=False))
    return ids


def mine_negatives(dataset: Dataset, k: int, min_context: int | None = None) -> HardNegatives:
    """Find the k bank rows nearest to each train target that do not continue its context.

    Left out are the true continuations of the last concept, of which the target is one, and rows
    with the vector of one, apart from rounding: no model could separate the two.

    Args:
        dataset: its whole bank is searched, exactly; its train split has the true continuations.
        k: 1 or more.
        min_context: fewest concepts of context of an example; None for the dataset's own rule.

    Raises:
        ConfigError: the dataset is too large: memory grows with the train sequences.
    """
    n = dataset.n_concepts
    sequences = count_examples(dataset)["train"]
    if sequences > MAX_MINED or n > MAX_SEARCHED:
        raise ConfigError(
            f"hard negatives are mined for at most {MAX_MINED:,} train sequences in a bank of at "
            f"most {MAX_SEARCHED:,} concepts; this dataset has {sequences:,} and {n:,}: train "
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
