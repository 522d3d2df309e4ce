"""`ocp-mamba predict` beside the model alone, which reads the same sequences in the same batches.

The model alone neither looks up concepts nor writes. A prediction of a dataset also puts its rows
in order, searches the bank and writes a file. One of an npz of vectors reads its input from the
disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.frame import ROOT
from benchmarks.models import SINGLE
from benchmarks.run import Run
from ocp_mamba.config import ModelConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.jobs.predict.file import PredictJob, write_predictions
from ocp_mamba.jobs.predict.inputs import CHAINS_IN_A_BATCH, DatasetInput, VectorInput
from ocp_mamba.jobs.predict.open_version import OpenedModel
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.text import passes

GOAL = 1.3
LENGTH = 8
"""Vectors of each sequence of the npz, about as many as a chain of the dataset has."""


def model_on_chains(model: OCPMambaLVM, dataset: Dataset, split: str) -> None:
    """Read every chain of a split in batches, and keep nothing."""
    bank = torch.from_numpy(dataset.bank)
    with torch.inference_mode():
        for batch in batches(dataset, split, CHAINS_IN_A_BATCH, bank=bank):
            model.predict_all(batch.vectors)


def model_on_vectors(model: OCPMambaLVM, vectors: torch.Tensor) -> None:
    """Read every sequence of ``(B, L, 768)`` in the passes of a prediction, and keep nothing."""
    with torch.inference_mode():
        for rows in passes(torch.full((len(vectors),), vectors.shape[1])):
            model(vectors[rows])


def writes(
    opened: OpenedModel, read: DatasetInput | VectorInput, out: Path, **settings: object
) -> Callable[[], None]:
    """Return a prediction that writes a file."""
    job = PredictJob(data=out, out=out, force=True, progress=False)
    job = replace(job, **settings)  # type: ignore[arg-type]
    return lambda: write_predictions(job, opened, read)


def main(run: Run) -> None:
    """Time a prediction of a dataset's split, and of an npz of vectors, into files."""
    config = replace(SINGLE, n_layers=1) if run.quick else SINGLE
    goal = run.goal(f"predict at most {GOAL} times the model's own time")
    names = ("parquet", "npz", "parquet, 5 concepts", "npz, vectors")
    tables = {
        kind: run.table(
            f"Predicting {kind}",
            [{"written": name} for name in ("nothing: the model alone", *names)],
        )
        for kind in ("a dataset", "an npz of vectors")
    }
    with tempfile.TemporaryDirectory() as folder:
        ratios = []
        for kind, calls, n in _contestants(Path(folder), config, run.quick):
            times = run.rounds(calls, n_rounds=2 if run.quick else 5, limit_s=45)
            peaks = run.peaks(calls)
            floor = times.get("floor")
            for row, name in zip(tables[kind].rows, ("floor", *names), strict=True):
                if name not in times or floor is None:
                    continue
                ratio = times[name].best / floor.best
                run.fill(
                    row,
                    {
                        "sequences/s": n / times[name].best,
                        "best s": times[name].best,
                        "over the model alone": ratio,
                        "peak MiB": peaks[name],
                    },
                )
                ratios.append(ratio)
            tables[kind].note = f"{n:,} sequences; a bank of 8,948 concepts."
        if ratios:
            run.reach(goal, f"{max(ratios):.2f}", max(ratios) <= GOAL)


def _contestants(
    folder: Path, config: ModelConfig, quick: bool
) -> list[tuple[str, dict[str, Callable[[], object]], int]]:
    """For each kind of input, the calls by name and the number of sequences."""
    torch.manual_seed(0)
    model = build_model(config).eval()
    dataset, split = Dataset.load(ROOT / "ocp_training_9k.npz"), "val"
    opened = OpenedModel("model", "", model, {}, dataset.texts, dataset.bank)
    n = 200 if quick else 2_000
    rng = np.random.default_rng(0)
    vectors = dataset.bank[rng.integers(0, dataset.n_concepts, (n, LENGTH))]
    np.savez(folder / "vectors.npz", seq_vectors=vectors)
    chains, rows = DatasetInput(dataset, (split,)), VectorInput(folder / "vectors.npz", model)

    def calls(read: DatasetInput | VectorInput, floor: Callable[[], object]) -> dict[str, Callable]:
        return {
            "floor": floor,
            "parquet": writes(opened, read, folder / "p.parquet"),
            "npz": writes(opened, read, folder / "p.npz"),
            "parquet, 5 concepts": writes(opened, read, folder / "5.parquet", top_k=5),
            "npz, vectors": writes(opened, read, folder / "v.npz", vectors=True),
        }

    given = torch.from_numpy(vectors)
    return [
        ("a dataset", calls(chains, lambda: model_on_chains(model, dataset, split)), chains.n),
        ("an npz of vectors", calls(rows, lambda: model_on_vectors(model, given)), n),
    ]
