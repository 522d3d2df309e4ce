"""A split of a dataset as MLflow shows it: name, digest, source, schema and profile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.data.dataset import Dataset as MlflowDataset
from mlflow.data.dataset_source_registry import get_dataset_source_from_json
from mlflow.data.schema import TensorDatasetSchema
from mlflow.types import Schema, TensorSpec

from ocp_mamba.config import D_VECTOR
from ocp_mamba.data.analysis.sample import sample_of
from ocp_mamba.data.dataset import Dataset

DIGEST_LENGTH = 32
"""MLflow keeps 36 characters at most; the whole fingerprint is the tag ``dataset.fingerprint``."""


@dataclass(frozen=True)
class Described:
    """Data of another kind than a `Dataset`, of which a run logs no inputs, only the identity.

    Attributes:
        fingerprint: hash of its content.
        meta: what is known of it; ``encoder`` has name and weight hash.
    """

    fingerprint: str
    meta: Mapping[str, Any]


class DatasetInput(MlflowDataset):
    """One split, or a sample of it; its digest is the start of the dataset's fingerprint."""

    def __init__(self, dataset: Dataset, split: str, path: Path | str) -> None:
        """Describe a split of a dataset that was read from ``path``, of which the name is kept."""
        path = Path(path)
        self._counts = {
            "split": split,
            "examples": dataset.n_examples(split),
            "chains": len(dataset.chains_in(split)),
            "concepts": dataset.n_concepts,
            "fingerprint": dataset.fingerprint,
            "sources": list(dataset.meta.get("sources", [])),
            "encoder": dataset.meta.get("encoder", {}),
            "tmd": dataset.chain_tmd is not None,
        }
        sample = sample_of(dataset)
        if sample:
            self._counts["sample"] = sample.to_dict()
        super().__init__(
            source=get_dataset_source_from_json(json.dumps({"uri": path.name}), "local"),
            name=f"{path.stem}-{split}{'-sample' if sample else ''}",
            digest=dataset.fingerprint[:DIGEST_LENGTH],
        )

    @property
    def identity(self) -> tuple[str, str]:
        """Name and digest, by which MLflow links a metric to a dataset."""
        return self.name, self.digest

    @property
    def profile(self) -> dict[str, Any]:
        """Counts and identity."""
        return self._counts

    @property
    def schema(self) -> TensorDatasetSchema:
        """Shape of a batch of contexts and of its targets."""
        floats = np.dtype(np.float32)
        return TensorDatasetSchema(
            features=Schema([TensorSpec(floats, (-1, -1, D_VECTOR))]),
            targets=Schema([TensorSpec(floats, (-1, D_VECTOR))]),
        )

    def to_dict(self) -> dict[str, str]:
        """Return what MLflow stores."""
        stored = {"schema": json.dumps(self.schema.to_dict()), "profile": json.dumps(self.profile)}
        return {**super().to_dict(), **stored}

    def _compute_digest(self) -> str:
        return self._digest
