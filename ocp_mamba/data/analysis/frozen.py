"""The evaluation set that is kept with a registered model: a dataset without its test chains.

Every metric on val, its strata, the leak check and the baselines can be computed again from it.
The concepts of the left out chains stay in the bank, so that retrieval has the same pool.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np

from ocp_mamba.data.analysis.sample import Sample, SampledDataset, sample_of
from ocp_mamba.data.analysis.subset import part_of, places_of
from ocp_mamba.data.arrays import DatasetArrays
from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.data.npz import write_npz
from ocp_mamba.errors import DatasetError

LEFT_OUT = "test"


def evaluation_set(dataset: Dataset) -> Dataset:
    """Return a dataset without its test chains, in memory; of a sample, a sample.

    Args:
        dataset: what a model is evaluated on, in memory or mapped.
    """
    chains = np.flatnonzero(dataset.split != SPLITS.index(LEFT_OUT))
    places, _ = places_of(dataset, chains)
    kept = part_of(dataset, chains, np.arange(dataset.n_concepts))
    if not isinstance(dataset, SampledDataset):
        return Dataset(**kept, meta=dataset.meta)
    return SampledDataset(
        **kept,
        meta=dataset.meta,
        sample=dataset.sample,
        chains=dataset.chains[chains],
        overlap=dataset.overlap[places],
        unused=dataset.unused,
    )


def content_of(dataset: Dataset) -> Dataset:
    """Return a dataset without what it knows of a whole one; its fingerprint is of its content."""
    return Dataset(**{field.name: getattr(dataset, field.name) for field in fields(DatasetArrays)})


def save_evaluation_set(dataset: Dataset, path: Path, sample_path: Path) -> list[Path]:
    """Write an evaluation set; returns the files.

    Args:
        dataset: of `evaluation_set`.
        path: a dataset file.
        sample_path: an ``.npz`` of what a sample's examples share with the whole dataset; written
            for a sample only.

    Raises:
        OSError: the folder cannot be written.
    """
    content_of(dataset).save(path)
    if not isinstance(dataset, SampledDataset):
        return [path]
    about = json.dumps({**asdict(dataset.sample), "unused": dataset.unused}, sort_keys=True)
    write_npz(
        sample_path,
        {"chains": dataset.chains, "overlap": dataset.overlap, "sample": np.array(about)},
    )
    return [path, sample_path]


def load_evaluation_set(path: Path, sample_path: Path) -> Dataset:
    """Read what `save_evaluation_set` wrote.

    Raises:
        DatasetError: a file is missing, damaged, or does not fit the other one.
    """
    dataset = Dataset.load(path)
    if not sample_path.exists():
        return dataset
    try:
        with np.load(sample_path, allow_pickle=False) as arrays:
            chains, overlap = arrays["chains"], arrays["overlap"]
            about = json.loads(str(arrays["sample"]))
        unused = int(about.pop("unused"))
        pairs = {split: tuple(pair) for split, pair in about["sequences"].items()}
        concepts = tuple(about["concepts"])
        sample = replace(Sample(**about), sequences=pairs, concepts=concepts)
    except Exception as error:  # a damaged file makes numpy, zipfile and json raise anything
        raise DatasetError(f"sample file {sample_path}: cannot be read: {error}") from error
    if overlap.shape != dataset.chain_values.shape or chains.shape != dataset.split.shape:
        raise DatasetError(
            f"sample file {sample_path}: is of {len(chains)} chains and {len(overlap)} concepts in "
            f"them, {path.name} has {dataset.n_chains} and {len(dataset.chain_values)}"
        )
    content = {field.name: getattr(dataset, field.name) for field in fields(DatasetArrays)}
    return SampledDataset(**content, sample=sample, chains=chains, overlap=overlap, unused=unused)


def fingerprint_of_whole(dataset: Dataset) -> str:
    """Return the fingerprint of the dataset that an evaluation set of a sample was drawn from."""
    sample = sample_of(dataset)
    return sample.of if sample else dataset.fingerprint
