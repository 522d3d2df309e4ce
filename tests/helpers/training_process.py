"""One process of two trainings, for tests; takes a folder, and `TrainConfig` fields as JSON.

The first starts anew, and leaves a copy of its files after epoch 2; the second resumes what one
process began.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.training.distributed import World, join
from ocp_mamba.training.state import EpochResult
from ocp_mamba.training.trainer import fit


def train(folder: Path, config: TrainConfig, name: str, world: World) -> None:
    dataset = Dataset.load(folder / "data.npz")
    torch.manual_seed(0)
    model = OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16))

    def leave_a_copy(result: EpochResult) -> None:
        if result.epoch == 2:
            shutil.copy(folder / f"{name}.pt", folder / f"{name}_left.pt")
            shutil.copy(folder / f"{name}.last.pt", folder / f"{name}_left.last.pt")

    result = fit(
        model,
        dataset,
        config,
        validate=validator(dataset, BankIndex(dataset.bank)),
        output=folder / f"{name}.pt",
        resume=name == "begun",
        on_epoch=leave_a_copy,
        progress=False,
        world=world,
    )
    weights = {key: value.tolist() for key, value in model.state_dict().items()}
    history = [{"losses": r.losses, "val": r.val} for r in result.history]
    (folder / f"{name}.{world.rank}.json").write_text(json.dumps([history, weights]))


if __name__ == "__main__":
    config = TrainConfig(**json.loads(sys.argv[2]))
    with join() as world:
        train(Path(sys.argv[1]), config, "anew", world)
        train(Path(sys.argv[1]), config, "begun", world)
