"""The chains of each epoch, and the learning rate of each step.

A curriculum trains on short chains first. With ``curriculum`` 0.5 and 10 epochs, the limit grows in
the first 5: epoch e trains on the chains no longer than the length that a share of e / 6 of the
train chains does not exceed, so that each epoch adds about as many chains as the one before. From
epoch 6 on there is no limit.
Source of the idea: Bengio et al., "Curriculum Learning", 2009.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import n_batches
from ocp_mamba.data.dataset import Dataset


@dataclass(frozen=True)
class Plan:
    """The epochs of a training.

    Attributes:
        longest: of each epoch, the most concepts that a chain may have; None for no limit.
        steps: of each epoch, its optimizer steps.
    """

    longest: tuple[int | None, ...]
    steps: tuple[int, ...]

    @property
    def total_steps(self) -> int:
        """Steps of all epochs: the learning rate's schedule runs over them."""
        return sum(self.steps)


def make_plan(dataset: Dataset, config: TrainConfig) -> Plan:
    """Plan the epochs of a training on a dataset's train split."""
    lengths = dataset.lengths[dataset.chains_in("train")]
    longest = longest_chains(lengths, config.max_epochs, config.curriculum)
    steps = (n_batches(dataset, "train", config.batch_size, longest=n) for n in longest)
    return Plan(longest, tuple(steps))


def longest_chains(lengths: np.ndarray, epochs: int, curriculum: float) -> tuple[int | None, ...]:
    """Return each epoch's limit of the chain length; None for an epoch without a limit.

    Args:
        lengths: concepts of each train chain, ``(n > 0,)``.
        epochs: of the training; the last one has no limit.
        curriculum: share of the epochs in which the longest chain grows, in [0, 1).
    """
    growing = min(math.ceil(curriculum * epochs), epochs - 1)
    ordered = np.sort(lengths)
    places = [math.ceil(len(ordered) * e / (growing + 1)) - 1 for e in range(1, growing + 1)]
    return (*(int(ordered[place]) for place in places), *[None] * (epochs - growing))


def learning_rate(step: int, total_steps: int, config: TrainConfig) -> float:
    """Learning rate of a step (from 0): linear warm-up, then half a cosine to the minimum."""
    warmup = max(1, round(config.warmup_fraction * total_steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = config.min_lr_fraction
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def mixup_of(epoch: int, config: TrainConfig) -> float:
    """Return the a of Beta(a, a) by which an epoch (from 1) mixes chains; 0 for the last ones."""
    return config.mixup if epoch <= round(config.mixup_share * config.max_epochs) else 0.0
