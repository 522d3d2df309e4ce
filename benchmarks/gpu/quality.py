"""The default training on the default dataset, and its model's metrics by GPU and by CPU."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.frame import ROOT, Cell
from benchmarks.gpu.place import Place
from benchmarks.run import Run
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.evaluation.names import COSINE, VAL_P1
from ocp_mamba.kernels import backend, cpu
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.trainer import fit, resolve_precision

DATA = ROOT / "ocp_training_9k.npz"
TOLERANCE = 1e-3
ROWS = 1024
"""Queries whose products with the bank are computed at once."""
TITLE = "The default training, {epochs} epochs on the default dataset, val split"


class ProductIndex:
    """The exact search of `embeddings.index.BankIndex` by a matrix product, without FAISS."""

    kind = "exact"

    def __init__(self, bank: np.ndarray) -> None:
        """Hold the bank, float32 ``(n_concepts, D)``."""
        self._bank = torch.from_numpy(bank)

    @property
    def size(self) -> int:
        return len(self._bank)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return inner products and row ids of the k best rows, ``(n, k)`` each, best first."""
        with torch.autocast("cpu", enabled=False):  # validation runs in the precision of training
            found = [
                (rows @ self._bank.T).topk(min(k, self.size))
                for rows in torch.from_numpy(queries).split(ROWS)
            ]
        scores = torch.cat([part.values for part in found])
        return scores.numpy(), torch.cat([part.indices for part in found]).numpy()


def main(run: Run, place: Place) -> None:
    """Train on the device, keep the ``.pt``, and evaluate it there and on the CPU."""
    title = place.title(TITLE.format(epochs=place.epochs))
    table = run.table(title, [{"model": "trained here"}, {"model": "the same .pt, on the CPU"}])
    goal = place.goal(run, f"the same .pt has the same metrics on the CPU, to {TOLERANCE}")
    dataset = load_dataset(DATA)
    backend.use_backend("auto", place.device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        model, cells = trained(dataset, place, path)
        here = evaluated(model, dataset)
        run.fill(table.rows[0], {**here, **cells})
        loaded = load_checkpoint(path).build_model()
    there = evaluated(loaded, dataset)
    run.fill(table.rows[1], {**there, "device": "cpu"})
    worst = max(abs(here[name] - there[name]) for name in here)
    run.reach(goal, f"{worst:.1e}", worst <= TOLERANCE)


def trained(dataset: Dataset, place: Place, path: Path) -> tuple[OCPMambaLVM, dict[str, Cell]]:
    """Train the default model; returns it and how the training went."""
    config = TrainConfig(max_epochs=place.epochs)
    torch.manual_seed(config.seed)
    model = build_model(place.config).to(place.device)
    started = time.perf_counter()
    fitted = fit(
        model,
        dataset,
        config,
        validate=validator(dataset, ProductIndex(dataset.bank)),  # type: ignore[arg-type]
        output=path,
        progress=False,
    )
    place.wait()
    cpu.use(False)  # evaluate in plain torch, as served
    speed = max(record.examples_per_second for record in fitted.history)
    return model.eval(), {
        "seconds": time.perf_counter() - started,
        "examples/s, best epoch": round(speed),
        "best epoch": fitted.best_epoch,
        "precision": resolve_precision("auto", place.device),
        "capture": fitted.capture,
        "device": place.device.type,
    }


def evaluated(model: OCPMambaLVM, dataset: Dataset) -> dict[str, float]:
    """Return cosine and P@1 on the val split, in float32 on the model's device."""
    found = validator(dataset, ProductIndex(dataset.bank))(model)  # type: ignore[arg-type]
    return {"cosine": found[COSINE], "P@1": found[VAL_P1]}


def on_cpu(place: Place) -> Place:
    """Return the same place with the CPU as its device."""
    return replace(place, device=torch.device("cpu"))
