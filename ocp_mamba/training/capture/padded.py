"""Batches padded to few shapes, and their losses without a shape that depends on the data.

What is padded weighs nothing in the loss: losses and gradients equal those of `loss.batch_losses`,
apart from rounding.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch, Mix
from ocp_mamba.model.base import NextVectorModel, conditions
from ocp_mamba.training.loss import loss_terms, with_total

SHORTEST = 4
"""Positions of the shortest padded batch."""


def graph_length(length: int, longest: int) -> int:
    """Return the positions to which a batch is padded: 4, 6, 8, 12, 16, 24, … or the longest.

    Args:
        length: positions of the batch, L.
        longest: positions of the longest chain of the training.
    """
    power = SHORTEST
    while power < length:
        power *= 2
    between = power * 3 // 4
    return min(longest, between if power > SHORTEST and length <= between else power)


def padded(batch: Batch, rows: int, length: int) -> Batch:
    """Return a batch with rows and positions added that hold no example, ``(rows, length)``.

    Every batch that is padded alike has the same shapes: one that mixes no chains has the weight 1.
    ``all_targets`` is left as it is.

    Raises:
        ValueError: the batch is larger already.
    """
    B, L = batch.mask.shape
    if rows < B or length < L:
        raise ValueError(f"a batch of {B} x {L} does not fit {rows} x {length}")
    down, right = rows - B, length - L

    def pad(x: Tensor, value: float = 0) -> Tensor:
        return F.pad(x, (0, 0) * (x.ndim - 2) + (0, right, 0, down), value=value)

    mix = batch.mix or Mix(torch.ones_like(batch.vectors[:, :, 0]), batch.targets)
    return replace(
        batch,
        vectors=pad(batch.vectors),
        lengths=F.pad(batch.lengths, (0, down), value=1),
        inputs=pad(batch.inputs, -1),
        targets=pad(batch.targets, -1),
        mask=pad(batch.mask),
        tmd=None if batch.tmd is None else F.pad(batch.tmd, (0, 0, 0, down)),
        relations=None if batch.relations is None else pad(batch.relations),
        chain_ids=F.pad(batch.chain_ids, (0, down), value=-1),
        mix=Mix(pad(mix.weight, 1), pad(mix.targets, -1)),
    )


def padded_losses(
    model: NextVectorModel,
    batch: Batch,
    share: Tensor,
    bank: Tensor,
    config: TrainConfig,
    candidates: Tensor | None,
) -> dict[str, Tensor]:
    """Return what `loss.batch_losses` does, of a padded batch, in static shapes.

    Args:
        model: predicts.
        batch: of `padded`.
        share: ``(B, L)``, the share of each position in the mean over the batch's OCP sequences;
            zero where there is none.
        bank: float32 ``(n_concepts, 768)`` unit rows.
        config: weights and temperature.
        candidates: see `loss.loss_terms`.
    """
    assert batch.mix is not None
    given = conditions(model, batch.tmd, batch.relations)
    members = model.predict_members(batch.vectors, **given).flatten(1, 2)
    targets, others = (
        bank[ids.flatten().clamp_min(0)] for ids in (batch.targets, batch.mix.targets)
    )
    targets = torch.lerp(others, targets, batch.mix.weight.flatten()[:, None])
    terms = loss_terms(model, members, targets, config, candidates)
    shares = share.flatten() / len(members)
    return with_total({name: (term * shares).sum() for name, term in terms.items()}, config)
