"""Predictions of every example of a split, in batches of whole chains."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.data.batches import batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import NotFiniteError
from ocp_mamba.model.base import conditions

EVALUATION_BATCH = 64
"""Chains in a batch: of 256, a quarter would be padding, and the batch outgrows the cache."""


def predict_examples(predictor: Predictor, dataset: Dataset, split: str) -> Tensor:
    """Predict every OCP sequence of a split.

    Returns:
        float32 ``(n_examples, 768)`` unit rows, in the order of ``dataset.examples(split)``.

    Raises:
        NotFiniteError: a prediction is NaN or infinite.
    """
    examples = dataset.examples(split)
    bank = torch.from_numpy(dataset.bank).to(device_of(predictor))
    out = torch.empty(len(examples.target), bank.shape[1])
    starts = np.searchsorted(examples.chain, np.arange(dataset.n_chains + 1))
    # not inference_mode: there autocast rounds the weights again for each batch
    with torch.no_grad():
        for batch in batches(dataset, split, EVALUATION_BATCH, bank=bank):
            taken = conditions(predictor, batch.tmd, batch.relations)
            predictions = predictor.predict_all(batch.vectors, **taken)
            ids = batch.chain_ids.cpu().numpy()
            rows = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in ids])
            out[torch.from_numpy(rows)] = predictions[batch.mask].cpu()
    bad = int((~out.isfinite().all(dim=1)).sum())
    if bad:
        raise NotFiniteError(f"{bad} of {len(out)} predictions of the {split} split are not finite")
    return out


def device_of(predictor: object) -> torch.device:
    """Return where a predictor computes; one without weights does so on the CPU."""
    weights = predictor.parameters() if isinstance(predictor, torch.nn.Module) else iter(())
    first = next(weights, None)
    return torch.device("cpu") if first is None else first.device
