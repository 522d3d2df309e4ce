"""Batches of whole chains: one causal pass over a chain learns all its OCP sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.data.dataset import Dataset

MEGABATCH = 32
"""Batches whose chains are sorted by length together: little padding, yet well mixed."""

READ_AHEAD, RELEASE_EVERY = 16, 8
"""Batches that are prefetched, and after which pages are released, of a mapped dataset."""


@dataclass(frozen=True)
class Mix:
    """The share of each position's own chain in a mixed batch, and the other chain's targets.

    Every chain of a batch is mixed with another chain of the batch: a position's input is the
    direction of ``w * own + (1 - w) * other``, w from 0.5 to 1, and its target is mixed alike. So
    the model learns to change smoothly between the steps of two chains. Source: Zhang et al.,
    "mixup: Beyond Empirical Risk Minimization", 2018, where w is drawn from Beta(a, a); here w is
    the larger of the drawn number and 1 less it.

    Attributes:
        weight: (B, L), w, in the bank's precision; 1 where either chain is padded.
        targets: int64 (B, L), bank ids of the other chain's next concepts; its own where w is 1.
    """

    weight: Tensor
    targets: Tensor


@dataclass(frozen=True)
class Batch:
    """B chains, their inputs right-padded to the L of the longest one.

    Attributes:
        vectors: float32 (B, L, 768), vectors of ``chain[:-1]``, zero where padded; mixed with
            those of another chain where ``mix`` says so.
        lengths: int64 (B,), valid inputs per row: the chain's length less 1.
        inputs: int64 (B, L), bank ids of the inputs, -1 where padded.
        targets: int64 (B, L), bank ids of the next concepts, -1 where padded.
        mask: bool (B, L), true where position t, which predicts ``chain[t + 1]``, is a training
            example: ``t + 1 >= chain_first``, or the ``min_context`` that was asked for.
        tmd: float32 (B, 16), or None for a dataset without TMD codes.
        relations: float32 (B, L, 2), by which relation each input follows the one before it and how
            sure that is, see `Dataset.steps`, zero where padded; None for a dataset without them.
        chain_ids: int64 (B,).
        all_targets: int64 (M,), bank ids of the targets of all examples of the batch: where several
            processes share it, those of the others too.
        mix: None where chains are not mixed.
    """

    vectors: Tensor
    lengths: Tensor
    inputs: Tensor
    targets: Tensor
    mask: Tensor
    tmd: Tensor | None
    relations: Tensor | None
    chain_ids: Tensor
    all_targets: Tensor
    mix: Mix | None = None


def n_batches(dataset: Dataset, split: str, batch_size: int, *, longest: int | None = None) -> int:
    """Number of batches of one pass over a split; ``longest`` as in `batches`.

    Raises:
        ValueError: ``batch_size`` is below 1 or the split unknown.
    """
    _check_size(batch_size)
    return -(-len(_chains(dataset, split, longest)) // batch_size)


def batches(
    dataset: Dataset,
    split: str,
    batch_size: int,
    *,
    bank: Tensor | None = None,
    shuffle_seed: int | None = None,
    longest: int | None = None,
    min_context: int | None = None,
    mixup: float = 0.0,
    share: tuple[int, int] = (0, 1),
    in_order: bool = False,
    first: int = 0,
) -> Iterator[Batch]:
    """Pass once over the chains of a split, chains of like length together.

    A mapped dataset's rows are prefetched some batches ahead, and its pages are released every few
    batches, so that resident memory stays flat. The order is the same as in memory: a permutation
    of all chains.

    Args:
        dataset: where the chains come from.
        split: "train", "val" or "test".
        batch_size: chains per batch; the last one may hold fewer.
        bank: the dataset's bank as a float32 tensor (n_concepts, 768), to reuse it or to keep it on
            a device; all tensors of the batches live on its device.
        shuffle_seed: seed of the order; None gives ascending lengths, for evaluation.
        longest: leave out chains of more concepts than this; None takes all.
        min_context: fewest concepts of context of an example; None for the dataset's own rule.
        mixup: a of Beta(a, a), by which chains are mixed, see `Mix`; 0 mixes none. Drawn from the
            seed for the whole batch: processes that share it draw the same.
        share: (rank, size): of every batch, only the chains that this one of ``size`` processes
            takes, every size-th one. Where it gets none, it holds one chain and no example.
        first: number of the first batch to give, from 0; those before it are skipped unread.
        in_order: go through the chains in the dataset's order, `MEGABATCH` batches at a time, which
            are sorted by length among themselves. Without a ``shuffle_seed`` only.

    Raises:
        ValueError: ``batch_size`` is below 1, the split unknown or the bank of another shape.
    """
    _check_size(batch_size)
    if bank is None:
        bank = torch.from_numpy(dataset.bank)
    if tuple(bank.shape) != dataset.bank.shape:
        raise ValueError(f"bank {tuple(bank.shape)} found, {dataset.bank.shape} wanted")
    ids = _chains(dataset, split, longest)
    order = _order(dataset.lengths[ids], batch_size, shuffle_seed, in_order)
    for rows in order[first : first + 2 * READ_AHEAD]:
        dataset.expect_ids(ids[rows])
    for rows in order[first : first + READ_AHEAD]:
        dataset.expect(ids[rows])
    for number, rows in enumerate(order[first:], first):
        if number + 2 * READ_AHEAD < len(order):
            dataset.expect_ids(ids[order[number + 2 * READ_AHEAD]])
        if number + READ_AHEAD < len(order):
            dataset.expect(ids[order[number + READ_AHEAD]])
        drawn = _draw(len(rows), mixup, (shuffle_seed or 0, number)) if mixup else None
        yield _batch(dataset, ids[rows], bank, min_context, drawn, share)
        if number % RELEASE_EVERY == RELEASE_EVERY - 1:
            dataset.release()


def _chains(dataset: Dataset, split: str, longest: int | None) -> np.ndarray:
    ids = dataset.chains_in(split)
    return ids if longest is None else ids[dataset.lengths[ids] <= longest]


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")


def _order(
    lengths: np.ndarray, batch_size: int, seed: int | None, in_order: bool
) -> list[np.ndarray]:
    """Row numbers of each batch, every row once, in 4 bytes each where they fit."""
    kind = np.int32 if len(lengths) < 2**31 else np.int64
    if seed is None and not in_order:
        return _cut(np.argsort(lengths, kind="stable").astype(kind), batch_size)
    rows, cut = np.arange(len(lengths), dtype=kind), []
    rng = None if in_order else np.random.default_rng(seed)
    if rng is not None:
        rows = rng.permutation(rows)
    for mega in _cut(rows, batch_size * MEGABATCH):
        cut += _cut(mega[np.argsort(lengths[mega], kind="stable")], batch_size)
    return cut if rng is None else [cut[i] for i in rng.permutation(len(cut))]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def _draw(n: int, mixup: float, seed: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Each chain's partner, by its row in the batch, and how much of itself stays, 0.5 to 1."""
    rng = np.random.default_rng(seed)
    weight = rng.beta(mixup, mixup, n).astype(np.float32)
    return rng.permutation(n), np.maximum(weight, 1 - weight)


def _batch(
    dataset: Dataset,
    ids: np.ndarray,
    bank: Tensor,
    min_context: int | None,
    drawn: tuple[np.ndarray, np.ndarray] | None,
    share: tuple[int, int],
) -> Batch:
    lengths = dataset.lengths[ids] - 1
    steps = np.arange(lengths.max())
    valid = steps < lengths[:, None]
    flat = np.where(valid, dataset.chain_offsets[ids, None] + steps, 0)
    inputs = np.where(valid, dataset.chain_values[flat], -1)
    targets = np.where(valid, dataset.chain_values[flat + 1], -1)
    mask = valid & (steps + 1 >= dataset.first_targets(ids, min_context)[:, None])
    all_targets = targets[mask]
    rank, size = share
    if rank >= len(ids):
        mask[:] = False
    mine = np.arange(len(ids))[rank % len(ids) :: size]
    width = lengths[mine].max()

    def own(array: np.ndarray) -> np.ndarray:
        return array[mine, :width]

    steps_in = dataset.steps(flat)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(bank.device)

    def vectors_of(ids: Tensor) -> Tensor:
        return bank[ids.clamp_min(0)].masked_fill((ids < 0)[:, :, None], 0.0)

    input_ids = tensor(own(inputs).astype(np.int64))
    vectors, mix = vectors_of(input_ids), None
    if drawn is not None:
        partner, weight = drawn
        both = valid & valid[partner]
        others = tensor(own(np.where(both, inputs[partner], inputs)).astype(np.int64))
        mix = Mix(
            weight=tensor(own(np.where(both, weight[:, None], 1.0))).to(bank.dtype),
            targets=tensor(own(np.where(both, targets[partner], targets)).astype(np.int64)),
        )
        mixed = torch.lerp(vectors_of(others), vectors, mix.weight[:, :, None])
        vectors = torch.where(mix.weight[:, :, None] < 1, F.normalize(mixed, dim=-1), vectors)
    return Batch(
        vectors=vectors,
        lengths=tensor(lengths[mine]),
        inputs=input_ids,
        targets=tensor(own(targets).astype(np.int64)),
        mask=tensor(own(mask)),
        tmd=None if dataset.chain_tmd is None else tensor(dataset.chain_tmd[ids[mine]]),
        relations=None
        if steps_in is None
        else tensor(own(np.where(valid[:, :, None], steps_in, np.float32(0)))),
        chain_ids=tensor(ids[mine]),
        all_targets=tensor(all_targets.astype(np.int64)),
        mix=mix,
    )
