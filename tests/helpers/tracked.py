"""A real, tiny training to track: seconds long, with the package's own loop."""

from __future__ import annotations

from pathlib import Path

import torch

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.training.state import FitResult
from ocp_mamba.training.trainer import fit

PERSISTENCE = {"next_vec_cosine": 0.01}


def train_tracked(
    run: TrackedRun, dataset: Dataset, config: ModelConfig, output: Path, epochs: int = 3
) -> FitResult:
    """Train a model as the command line does, telling the run of each epoch."""
    bank = torch.from_numpy(dataset.bank)

    def validate(model: OCPMambaLVM) -> dict[str, float]:
        hits, cosines = [], []
        with torch.inference_mode():
            for batch in batches(dataset, "val", 64, bank=bank):
                tmd = batch.tmd if config.d_tmd else None
                predicted = model.predict_all(batch.vectors, tmd)[batch.mask]
                targets = batch.targets[batch.mask]
                cosines.append((predicted * bank[targets]).sum(-1))
                hits.append((predicted @ bank.T).argmax(-1) == targets)
        return {
            "next_vec_cosine": float(torch.cat(cosines).mean()),
            "retrieval_p1": float(torch.cat(hits).float().mean()),
        }

    torch.manual_seed(0)
    return fit(
        OCPMambaLVM(config),
        dataset,
        TrainConfig(max_epochs=epochs, batch_size=16, precision="float32", lr=3e-3),
        validate=validate,
        output=output,
        on_epoch=run.on_epoch,
        progress=False,
    )
