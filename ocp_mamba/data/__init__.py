"""Datasets: the file, its builder, the import of older files, splits, checks and batches."""

from __future__ import annotations

from pathlib import Path

from ocp_mamba.data.file import SPLITS, Dataset, DatasetError, Examples, is_dataset_file
from ocp_mamba.data.shards import is_shards, open_shards

__all__ = ["SPLITS", "Dataset", "DatasetError", "Examples", "load_dataset"]


def load_dataset(path: str | Path, allow_pickle: bool = False) -> Dataset:
    """Open a dataset file, a folder of shards, or an `.npz` of an older layout by importing it.

    Args:
        path: the `.npz`, or the folder.
        allow_pickle: let an older file hold object arrays. Unpickling runs whatever code the
            file's author put in it; a dataset file never needs it.

    Raises:
        DatasetError: the file is none of these, or not valid; says which key and why.
    """
    if is_shards(path):
        return open_shards(path)
    if is_dataset_file(path):
        return Dataset.load(path)
    from ocp_mamba.data.legacy import import_legacy

    dataset, _ = import_legacy(path, allow_pickle=allow_pickle)
    return dataset
