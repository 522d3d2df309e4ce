"""Fill a model's context lookup from the train split."""

from __future__ import annotations

import numpy as np
import torch

from ocp_mamba.data.chunks import train_steps
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.model.context_lookup import ContextLookup


def fill_lookup(dataset: Dataset, lookup: ContextLookup, min_context: int) -> None:
    """Store the train split's steps, or a draw of them where there are more than it has room for.

    Args:
        dataset: its train split has the steps.
        lookup: holds them afterwards.
        min_context: fewest concepts of context of a step.
    """
    steps = train_steps(dataset, lookup.max_steps, min_context)
    ids, places = np.unique(steps, return_inverse=True)
    absent = int(len(ids) > 0 and ids[0] < 0)  # the place of -1, which stands for no concept
    rows = torch.from_numpy(dataset.rows(ids[absent:]))
    lookup.set_steps(rows, torch.from_numpy(places.reshape(steps.shape) - absent))
