"""Datasets: the file and its checks, splits, and batches for training.

`build` makes datasets, `legacy` imports older files, `shards` holds datasets larger than memory,
`analysis` finds leaks and draws samples.
"""

from ocp_mamba.data.dataset import SPLITS, Dataset, Examples
from ocp_mamba.data.load import load_dataset

__all__ = ["SPLITS", "Dataset", "Examples", "load_dataset"]
