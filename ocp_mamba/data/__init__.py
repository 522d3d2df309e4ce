"""Datasets: the file and its checks, splits, batches for training.

`build` makes them, `legacy` imports older files, `shards` keeps large ones, `analysis` looks inside.
"""

from ocp_mamba.data.dataset import SPLITS, Dataset, Examples
from ocp_mamba.data.load import load_dataset

__all__ = ["SPLITS", "Dataset", "Examples", "load_dataset"]
