"""Registered versions without a training: a tiny untrained model with its bundle."""

from __future__ import annotations

from pathlib import Path

from data_maker import TINY, make_dataset
from trainings import seeded

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.serving.bundle import CHECKPOINT, write_bundle
from ocp_mamba.serving.text_pyfunc import save_text_pyfunc

FACTS = {
    "run_id": "0" * 32,
    "epoch": 2,
    "metrics_version": "3",
    "pool_size": 40,
    "metrics": {},
    "gates": {},
}


def write_version(folder: Path, dataset: Dataset, config: ModelConfig) -> list[Path]:
    """Write a ``.pt`` and its bundle, as in a version's ``artifacts``; returns the bundle."""
    save_checkpoint(
        folder / CHECKPOINT,
        seeded(config),
        dataset_fingerprint=dataset.fingerprint,
        encoder=dataset.meta["encoder"],
    )
    return write_bundle(folder, folder / CHECKPOINT, dataset, FACTS)


def write_text_model(
    folder: Path, dataset: Dataset | None = None, config: ModelConfig | None = None
) -> Path:
    """Write the model for people; its files are under ``artifacts`` of the folder returned."""
    files = folder / "files"
    files.mkdir()
    bundle = write_version(files, dataset or make_dataset(60, 40), config or ModelConfig(**TINY))
    save_text_pyfunc(folder / "pyfunc", files / CHECKPOINT, bundle)
    return folder / "pyfunc"
