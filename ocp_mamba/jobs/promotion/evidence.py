"""What a training writes down about its model, so that a promotion can check it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.names import HEADLINE
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.serving.bundle import write_bundle
from ocp_mamba.training.state import FitResult


def write_evidence(
    folder: Path,
    checkpoint: Path,
    evaluated_on: Dataset,
    *,
    run_id: str,
    evaluation: Evaluation,
    gates: Mapping[str, str],
    fitted: FitResult,
    min_context: int,
) -> list[Path]:
    """Write the bundle of a training's best epoch; returns its files.

    Args:
        folder: where to write; made where it does not exist.
        checkpoint: the ``.pt`` of the best epoch.
        evaluated_on: the dataset, or the sample, that it was evaluated on.
        run_id: of the training's run.
        evaluation: of the best epoch on val.
        gates: verdicts by name.
        fitted: what the training gave.
        min_context: fewest concepts of context that it learnt from.
    """
    facts: dict[str, Any] = {
        "run_id": run_id,
        "epoch": fitted.best_epoch,
        "metrics_version": evaluation.metrics_version,
        "pool_size": evaluation.pool_size,
        "metrics": headline_figures(evaluation),
        "gates": dict(gates),
        "training": {
            "min_context": min_context,
            "best_cosine": fitted.best_cosine,
            "minutes": fitted.train_minutes,
            "trends": [record.improvement_trend for record in fitted.history],
        },
    }
    return write_bundle(folder, checkpoint, evaluated_on, facts)


def headline_figures(evaluation: Evaluation) -> dict[str, dict[str, Any]]:
    """Return the metrics over all examples, and cosine and P@1 of each stratum, with intervals.

    Each is an object of ``value``, ``low``, ``high`` and ``n``, under the names of
    ``Evaluation.figures`` such as ``unseen/next_vec_cosine``.
    """
    strata = [f"{stratum}/{metric}" for stratum in evaluation.strata for metric in HEADLINE]
    return {
        name: asdict(figure)
        for name, figure in evaluation.figures.items()
        if "/" not in name or name in strata
    }
