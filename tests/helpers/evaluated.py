"""Evaluations to report on: a made-up history, and real evaluations of baselines."""

from __future__ import annotations

from dataclasses import replace

from ocp_mamba.baselines.simple import cheap_baselines
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.training.history import EpochRecord

FIRST = EpochRecord(
    epoch=1,
    losses={"cosine": 0.9, "total": 1.1, "grad_norm": 7.0},
    lr=0.001,
    seconds=2.0,
    examples_per_second=50.0,
    val={"next_vec_cosine": 0.31, "retrieval_p1": 0.05},
    improvement_trend=None,
    is_best=True,
    is_last=False,
)
HISTORY = [
    FIRST,
    replace(FIRST, epoch=2, val={"next_vec_cosine": 0.52}, improvement_trend=0.21),
    replace(FIRST, epoch=3, val={"next_vec_cosine": 0.50}, improvement_trend=0.1, is_best=False),
]


def evaluate_baselines(dataset: Dataset, split: str = "val") -> dict[str, Evaluation]:
    """Evaluate every cheap baseline on a split."""
    return {
        name: evaluate(predictor, dataset, split, name=name)
        for name, predictor in cheap_baselines(dataset).items()
    }
