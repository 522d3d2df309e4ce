"""What stands beside every predictor on a split, worked out once: strata, families, plain means."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ocp_mamba import metrics
from ocp_mamba.baselines import ContextMean, GlobalMean, Predictor
from ocp_mamba.conditioning import conditions
from ocp_mamba.data.batches import batches
from ocp_mamba.data.file import Dataset, Examples
from ocp_mamba.data.leak import strata
from ocp_mamba.data.split import families

EVALUATION_BATCH = 64
"""Chains: in batches of 256 a quarter of the places are padding, and they leave the cache."""


@dataclass(frozen=True)
class Yardstick:
    """What is the same for all predictors that are judged on a split.

    Attributes:
        examples: of the split.
        strata: masks over the examples, of `data.leak.strata`.
        families: int64 ``(n,)``, of `data.split.families`.
        context_mean_margin: float32 ``(n,)``, the margin of the untrained context mean.
        target_variance: of the examples' targets.
        global_mean: float32 ``(768,)``, direction of the mean train target; None without train.
        target_cosine_to_global_mean: float32 ``(n,)``; None where that is.
    """

    examples: Examples
    strata: dict[str, np.ndarray]
    families: np.ndarray
    context_mean_margin: np.ndarray
    target_variance: float
    global_mean: Tensor | None
    target_cosine_to_global_mean: np.ndarray | None


_MADE: WeakKeyDictionary[Dataset, dict[str, Yardstick]] = WeakKeyDictionary()


def yardstick(dataset: Dataset, split: str) -> Yardstick:
    """Return what a split's judgements share; made once, and kept while the dataset is in use.

    Raises:
        ValueError: the split is unknown, or has no examples.
    """
    made = _MADE.setdefault(dataset, {})
    if split not in made:
        made[split] = _make(dataset, split)
    return made[split]


def _make(dataset: Dataset, split: str) -> Yardstick:
    examples = dataset.examples(split)
    if len(examples.target) == 0:
        raise ValueError(f"the {split} split has no examples to judge on")
    targets = torch.from_numpy(dataset.bank[examples.target])
    last = torch.from_numpy(dataset.bank[examples.last])
    untrained = predict_examples(ContextMean(), dataset, split)
    mean = GlobalMean(dataset).mean if dataset.n_examples("train") else None
    to_mean = None if mean is None else metrics.cosine(targets, mean.expand_as(targets)).numpy()
    return Yardstick(
        examples=examples,
        strata=strata(dataset, split),
        families=families(dataset, split),
        context_mean_margin=metrics.margin(untrained, targets, last).numpy(),
        target_variance=metrics.variance(targets),
        global_mean=mean,
        target_cosine_to_global_mean=to_mean,
    )


def predict_examples(predictor: Predictor, dataset: Dataset, split: str) -> Tensor:
    """Predict every OCP sequence of a split.

    Returns:
        float32 ``(n_examples, 768)`` unit rows, in the order of ``dataset.examples(split)``.
    """
    examples = dataset.examples(split)
    bank = torch.from_numpy(dataset.bank).to(device_of(predictor))
    out = torch.empty(len(examples.target), bank.shape[1])
    starts = np.searchsorted(examples.chain, np.arange(dataset.n_chains + 1))
    # not inference_mode, in which autocast rounds the weights anew with each batch
    with torch.no_grad():
        for batch in batches(dataset, split, EVALUATION_BATCH, bank=bank):
            taken = conditions(predictor, batch.tmd, batch.relations)
            predictions = predictor.predict_all(batch.vectors, **taken)
            ids = batch.chain_ids.cpu().numpy()
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in ids])
            out[torch.from_numpy(rows)] = predictions[batch.mask].cpu()
    return out


def device_of(predictor: object) -> torch.device:
    """Return where a predictor computes; one without weights does so on the CPU."""
    weights = predictor.parameters() if isinstance(predictor, torch.nn.Module) else iter(())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device
