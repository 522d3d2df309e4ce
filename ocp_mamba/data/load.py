"""Opening a dataset, whatever kind of file it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ocp_mamba.data.dataset import Dataset, is_dataset_file
from ocp_mamba.data.legacy.importer import import_legacy
from ocp_mamba.data.shards.mapped import is_shards, open_shards


def load_dataset(
    path: str | Path, allow_pickle: bool = False, log: Callable[[str], object] | None = None
) -> Dataset:
    """Open a dataset file, a folder of mapped arrays, or import an `.npz` of an older layout.

    Args:
        path: the `.npz`, or the folder.
        allow_pickle: let an older file hold object arrays. Unpickling runs whatever code the
            file's author put in it; a dataset file never needs it.
        log: called with the report of an import, in Markdown: what was found, repaired and dropped.

    Raises:
        DatasetError: the file is none of these, or not valid; says which key and why.
    """
    if is_shards(path):
        return open_shards(path)
    if is_dataset_file(path):
        return Dataset.load(path)
    dataset, report = import_legacy(path, allow_pickle=allow_pickle)
    if log is not None:
        log(report.to_markdown())
    return dataset
