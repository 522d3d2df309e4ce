"""Small models and quick settings of trainings, for tests."""

from __future__ import annotations

import torch

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.model.build import build_model

TINY = ModelConfig(d_model=32, n_layers=1, headdim=16)
QUICK = TrainConfig(batch_size=16, max_epochs=3, lr=3e-3, precision="float32")


def seeded(config=TINY, seed=0):
    torch.manual_seed(seed)
    return build_model(config)
