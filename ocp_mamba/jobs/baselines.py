"""The baselines of a training run: trained where asked for, evaluated, tracked as child runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ocp_mamba.baselines.checkpoint import load_predictor
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.baselines.simple import cheap_baselines
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.learnt import learnt_from
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.exposure import TrainedOn
from ocp_mamba.evaluation.names import COSINE, HEADLINE, P1, TRAIN_MINUTES
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.common import Log
from ocp_mamba.jobs.train_once import build_baseline, fit_and_save, history_of
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.training.history import EpochRecord

CHEAP, FULL = "cheap", "full"


def learns_from(dataset: Dataset, min_context: int) -> TrainedOn:
    """Return what a training on a dataset learns from, as its ``.pt`` says it."""
    learnt = learnt_from(dataset, min_context)
    return TrainedOn(f"the {learnt.examples.count:,} train sequences of this run", learnt, True)


def evaluate_cheap(
    dataset: Dataset, index: BankIndex, trained_on: TrainedOn | None = None
) -> dict[str, Evaluation]:
    """Evaluate the baselines that need no gradient on the validation split, by name.

    Args:
        dataset: to fit them on and to evaluate on.
        index: of its bank.
        trained_on: makes the strata; None for the dataset's train split.
    """
    return {
        name: evaluate(predictor, dataset, "val", name=name, index=index, trained_on=trained_on)
        for name, predictor in cheap_baselines(dataset).items()
    }


def lines_of(baselines: Mapping[str, Evaluation]) -> dict[str, dict[str, float]]:
    """Return what charts draw as a line for each baseline, by the keys of `charts.LINES`."""
    metrics = {"cosine": COSINE, "p1": P1}
    return {
        name: {
            short: figure.value
            for short, metric in metrics.items()
            if (figure := evaluation.figures.get(metric)) and figure.value is not None
        }
        for name, evaluation in baselines.items()
    }


def train_and_evaluate(
    run: TrackedRun,
    like: OCPMambaLVM,
    dataset: Dataset,
    evaluation_data: Dataset,
    index: BankIndex,
    trained_on: TrainedOn,
    config: TrainConfig,
    output: Path,
    *,
    log: Log,
    progress: bool,
    device: torch.device | None = None,
) -> dict[str, Evaluation]:
    """Train each baseline as the model was trained, evaluate it and log it as a child run.

    Size, seed, batches, loss, schedule, precision and early stopping are those of the model. The
    best epoch is written beside the model's file, as ``<stem>.<name>.pt``, and to the child run.
    Where a run goes on after a kill, a baseline that has its file is not trained again.

    Args:
        run: of the model.
        like: the trained model, whose shape and size the baselines get.
        dataset: to train on.
        evaluation_data: to validate and evaluate on.
        index: of its bank.
        trained_on: what the model learnt from, and they learn from.
        config: settings of the model's training.
        output: the model's file.
        log: prints a line for a person.
        progress: show progress bars.
        device: to train on; None for the CPU.

    Returns:
        Evaluations of the best epochs on the validation split, by name.
    """
    evaluations, validate = {}, validator(evaluation_data, index)
    for name in TRAINED_BASELINES:
        model = build_baseline(name, like.config, like.num_parameters(), config.seed).to(device)
        path = output.with_name(f"{output.stem}.{name}.pt")
        if path.exists():
            log(f"\nThe {name} baseline was trained before the interruption")
        else:
            log(f"\nTraining the {name} baseline, {model.num_parameters():,} parameters")
            fit_and_save(
                model,
                dataset,
                config,
                path,
                validate=validate,
                learnt=learnt_from(dataset, config.min_context),
                progress=progress,
            )
        log(f"baseline file {path}")
        saved = load_predictor(path)
        model, history = saved.model, history_of(saved)
        evaluations[name] = evaluate(
            model, evaluation_data, "val", name=name, index=index, trained_on=trained_on
        )
        run.compare_with_trained(name, history)
        params = {
            "ran.parameters": model.num_parameters(),
            "best_epoch": saved.loop["best_epoch"],
            "epochs": len(history),
        }
        log_baseline(
            run,
            name,
            evaluations[name],
            params,
            {TRAIN_MINUTES: saved.loop["minutes"]},
            saved.loop["alarms"],
            history=history,
            files=[path],
        )
    return evaluations


def log_baseline(
    run: TrackedRun,
    name: str,
    evaluation: Evaluation,
    params: Mapping[str, object] | None = None,
    numbers: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
    *,
    history: Sequence[EpochRecord] = (),
    files: Sequence[Path] = (),
) -> None:
    """Log a baseline as a child run, and its headline metrics as a tag of the run itself."""
    run.log_child(
        f"baseline {name}",
        {"predictor": name, **(params or {})},
        {**evaluation.headline(), **(numbers or {})},
        {"kind": "baseline", **evaluation.tags(), **(tags or {})},
        history=history,
        files=files,
    )
    headline = ", ".join(
        f"{key} {evaluation.figures[key]}" for key in HEADLINE if key in evaluation.figures
    )
    run.log_results({}, tags={f"baseline.{name}": headline})


def trained_gates(evaluation: Evaluation, trained: Mapping[str, Evaluation]) -> dict[str, str]:
    """Return the gates of the trained baselines; ``not-run`` where none was trained."""
    return {
        "beats_trained_baselines_cosine": gates.beats_gate(evaluation, trained, COSINE),
        "beats_trained_baselines_p1": gates.beats_gate(evaluation, trained, P1),
    }
