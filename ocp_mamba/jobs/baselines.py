"""The baselines of a training run: evaluated, trained where asked for, and tracked as child runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from ocp_mamba.baselines.checkpoint import save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.baselines.simple import cheap_baselines
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.names import COSINE, HEADLINE, P1, TRAIN_MINUTES
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.trainer import fit

CHEAP, FULL = "cheap", "full"


def evaluate_cheap(dataset: Dataset, index: BankIndex) -> dict[str, Evaluation]:
    """Evaluate the baselines that need no gradient on the validation split, by name."""
    return {
        name: evaluate(predictor, dataset, "val", name=name, index=index)
        for name, predictor in cheap_baselines(dataset).items()
    }


def train_and_evaluate(
    run: TrackedRun,
    like: OCPMambaLVM,
    dataset: Dataset,
    evaluated_on: Dataset,
    index: BankIndex,
    config: TrainConfig,
    output: Path,
    *,
    log: Callable[[str], None],
    progress: bool,
    device: torch.device | None = None,
) -> dict[str, Evaluation]:
    """Train each baseline of the model's size as the model was, evaluate it and log it as a child.

    Everything is the model's: seed, batches, loss, schedule, precision, early stopping. Each one's
    best epoch is written beside the model's file, as ``<stem>.<name>.pt``, and into its child run.

    Returns:
        Evaluations of the best epochs on the validation split, by name.
    """
    evaluated, validate = {}, validator(evaluated_on, index)
    for name, make in TRAINED_BASELINES.items():
        torch.manual_seed(config.seed)
        model = make(like.config, like.num_parameters()).to(device)
        log(f"\nTraining the {name} baseline, {model.num_parameters():,} parameters")
        fitted = fit(model, dataset, config, validate=validate, progress=progress)
        evaluated[name] = evaluate(model.cpu().eval(), evaluated_on, "val", name=name, index=index)
        params = {
            "ran.parameters": model.num_parameters(),
            "best_epoch": fitted.best_epoch,
            "epochs": len(fitted.history),
        }
        path = output.with_name(f"{output.stem}.{name}.pt")
        save_baseline(
            path,
            model,
            dataset_fingerprint=dataset.fingerprint,
            encoder=dict(dataset.meta.get("encoder", {})),
            loop={"epoch": fitted.best_epoch},
        )
        log(f"baseline file {path}")
        log_baseline(
            run,
            name,
            evaluated[name],
            params,
            {TRAIN_MINUTES: fitted.train_minutes},
            {alarm.tag: str(alarm) for alarm in fitted.alarms},
            history=fitted.history,
            files=[path],
        )
    return evaluated


def log_baseline(
    run: TrackedRun,
    name: str,
    evaluated: Evaluation,
    params: Mapping[str, object] | None = None,
    numbers: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    history: Sequence[EpochRecord] = (),
    files: Sequence[Path] = (),
) -> None:
    """Log a baseline as a child run, and its headline beside the model's on the run itself."""
    run.log_child(
        f"baseline {name}",
        {"predictor": name, **(params or {})},
        {**evaluated.headline(), **(numbers or {})},
        {"kind": "baseline", **evaluated.tags(), **(tags or {})},
        history=history,
        files=files,
    )
    said = ", ".join(
        f"{key} {evaluated.figures[key]}" for key in HEADLINE if key in evaluated.figures
    )
    run.log_results({}, tags={f"baseline.{name}": said})


def trained_gates(evaluated: Evaluation, trained: Mapping[str, Evaluation]) -> dict[str, str]:
    """Whether the model beats every trained baseline; ``not-run`` where none was trained."""
    return {
        "beats_trained_baselines_cosine": gates.beats_gate(evaluated, trained, COSINE),
        "beats_trained_baselines_p1": gates.beats_gate(evaluated, trained, P1),
    }
