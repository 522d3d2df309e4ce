"""Checks, before any work is done, that a dataset has what a model is trained with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import ConfigError, DatasetError, JobError, first_line
from ocp_mamba.system.disk import probe_folder

MANY = 1000
"""Targets that are compared: more are never all the same by chance."""
SAME = 1e-6
"""Most that components of equal unit rows differ by, after rounding."""


def require_trainable(dataset: Dataset, data: Path, model: ModelConfig) -> None:
    """Refuse a dataset with which the training would fail only after minutes of work.

    Raises:
        DatasetError: the train or the val split has no examples.
        ConfigError: the model takes TMD vectors or relations that the dataset does not have.
    """
    for split in ("train", "val"):
        if dataset.n_examples(split) == 0:
            raise DatasetError(
                f"{data}: the {split} split has no OCP sequences; a training needs a train and "
                "a val split"
            )
    if model.d_tmd and dataset.chain_tmd is None:
        raise ConfigError(
            f"{data} has no chain_tmd, which TMD conditioning needs; train without --tmd, or "
            "build the dataset from a source with TMD codes"
        )
    if model.relations and model.relations != dataset.relations:
        raise ConfigError(
            f"the model takes the relations {', '.join(model.relations)}, but {data} has "
            f"{', '.join(dataset.relations) or 'none'}; leave model.relations out of the config "
            "file, and give --relations for those of the dataset"
        )


def constant_targets(dataset: Dataset) -> list[str]:
    """Return a warning for each split that is learnt or validated and has one target only.

    Such a model is trained, because nothing is wrong with the file, but nothing is shown by it: the
    gate ``targets_vary`` fails.
    """
    warnings = []
    for split in ("train", "val"):
        targets = np.unique(dataset.examples(split).target)
        rows = dataset.rows(targets[:MANY])
        if np.allclose(rows, rows[0], atol=SAME):
            warnings.append(
                f"all targets of the {split} split are one vector: a model that gives it always is "
                "perfect, so no metric means anything"
            )
    return warnings


def with_relations(model: ModelConfig, dataset: Dataset, data: Path) -> ModelConfig:
    """Return the shape of a model that takes the dataset's relations.

    Raises:
        ConfigError: the dataset has none.
    """
    if dataset.chain_relation is None:
        raise ConfigError(
            f"{data} has no chain_relation, which relation conditioning needs; train without "
            "--relations or the preset relations, or build the dataset from chains that name the "
            "relations of their steps (data build --wordnet FOLDER --relations all)"
        )
    return replace(model, relations=dataset.relations)


def require_writable(folder: Path) -> None:
    """Make the output folder and try to write in it, before any work is done.

    Raises:
        JobError: it cannot be written.
    """
    try:
        probe_folder(folder, "report.html")
    except OSError as error:
        raise JobError(
            f"--output {folder}: the folder cannot be written: {first_line(error)}; name another"
        ) from error
