"""What all evaluations on a split share, computed once: families and simple references."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.baselines.simple import ContextMean, GlobalMean
from ocp_mamba.data.dataset import Dataset, Examples
from ocp_mamba.data.split import families
from ocp_mamba.evaluation import metrics
from ocp_mamba.evaluation.predict import predict_examples


@dataclass(frozen=True)
class SplitReference:
    """What is the same for all predictors that are evaluated on a split.

    Attributes:
        examples: of the split.
        families: int64 ``(n,)``, of `data.split.families`.
        context_mean_margin: float32 ``(n,)``, the margin of the untrained context mean.
        target_variance: of the examples' targets.
        global_mean: float32 ``(768,)``, direction of the mean train target; None without train.
        target_cosine_to_global_mean: float32 ``(n,)``; None where that is.
    """

    examples: Examples
    families: np.ndarray
    context_mean_margin: np.ndarray
    target_variance: float
    global_mean: Tensor | None
    target_cosine_to_global_mean: np.ndarray | None


_MADE: WeakKeyDictionary[Dataset, dict[str, SplitReference]] = WeakKeyDictionary()


def split_reference(dataset: Dataset, split: str) -> SplitReference:
    """Return what the evaluations on a split share; computed once and kept with its dataset.

    Raises:
        ValueError: the split is unknown, or has no examples.
    """
    made = _MADE.setdefault(dataset, {})
    if split not in made:
        made[split] = _make(dataset, split)
    return made[split]


def _make(dataset: Dataset, split: str) -> SplitReference:
    examples = dataset.examples(split)
    if len(examples.target) == 0:
        raise ValueError(f"the {split} split has no examples to evaluate on")
    targets = torch.from_numpy(dataset.bank[examples.target])
    last = torch.from_numpy(dataset.bank[examples.last])
    untrained = predict_examples(ContextMean(), dataset, split)
    mean = GlobalMean(dataset).mean if dataset.n_examples("train") else None
    to_mean = None if mean is None else metrics.cosine(targets, mean.expand_as(targets)).numpy()
    return SplitReference(
        examples=examples,
        families=families(dataset, split),
        context_mean_margin=metrics.margin(untrained, targets, last).numpy(),
        target_variance=metrics.variance(targets),
        global_mean=mean,
        target_cosine_to_global_mean=to_mean,
    )
