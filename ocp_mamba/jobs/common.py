"""What several jobs share: to open and check data, and to log what really runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.analysis.leakage import LEARN_ALL, LeakReport, check
from ocp_mamba.data.analysis.sample import EvalLimits, evaluation_part, sample_of
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.names import LATENCY
from ocp_mamba.jobs.artifacts import log_leaks
from ocp_mamba.kernels.backend import described
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.reports.note import check_note
from ocp_mamba.system.paths import resolve_output
from ocp_mamba.tracking.session import EXPERIMENT, track
from ocp_mamba.tracking.tags import NOTE
from ocp_mamba.training.compile import start_kernels
from ocp_mamba.training.trainer import resolve_precision

Log = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class ComparisonJob:
    """What a job that trains and compares several models is started with.

    Attributes:
        data: a dataset file, or an older npz.
        output: folder of the table, made where it does not exist.
        models: folder of the trained models, which other tables share, made where it does not
            exist.
        model: shape of the model.
        train: settings of every training; the seed is replaced by each of ``seeds``.
        seeds: at least one.
        experiment: of the MLflow runs.
        allow_pickle: see `open_data`.
        progress: show progress bars.
    """

    data: Path
    output: Path
    models: Path
    model: ModelConfig
    train: TrainConfig
    seeds: tuple[int, ...]
    experiment: str = EXPERIMENT
    allow_pickle: bool = False
    progress: bool = True


def open_data(path: Path, *, allow_pickle: bool, log: Log) -> Dataset:
    """Open a dataset and log its path and, for an older file, what its import did.

    Args:
        path: a dataset file, a folder of shards, or an older npz.
        allow_pickle: open the pickles of an older npz, which can run any code.
        log: prints a line for a person.

    Raises:
        DatasetError: the file is no dataset, or has faults.
    """
    log(f"data {path}")
    return load_dataset(path, allow_pickle=allow_pickle, log=log)


def check_dataset_and_log(dataset: Dataset, log: Log, min_context: int = LEARN_ALL) -> LeakReport:
    """Check a dataset for leaks and log each warning of the report.

    Args:
        dataset: the dataset that is evaluated.
        log: takes the warnings.
        min_context: fewest concepts of context that the training learns from. The default covers
            the most that any training learns, for a model whose training is unknown.
    """
    report = check(dataset, min_context=min_context)
    for warning in report.warnings:
        log(f"WARNING: {warning}")
    return report


def evaluation_dataset(dataset: Dataset, limits: EvalLimits, log: Log, progress: bool) -> Dataset:
    """Return the dataset to evaluate on; where it is a sample, its size is logged."""
    evaluation_data = evaluation_part(dataset, limits, progress=progress)
    sample = sample_of(evaluation_data)
    if sample:
        log(
            f"Too large to be evaluated whole; evaluated on {sample}. For more: --eval-sequences, "
            "--eval-pool, --eval-train (0: all)"
        )
    return evaluation_data


def what_ran(
    model: NextVectorModel, dataset: Dataset, config: TrainConfig, backend: str = "auto"
) -> dict[str, object]:
    """Return the params of what really runs, whatever was asked for; starts the CPU kernels."""
    device = next(model.parameters()).device
    return {
        "ran.backend": described(backend, device),
        "ran.device": str(device),
        "ran.precision": resolve_precision(config.precision, device),
        **start_kernels(model, dataset, config).params(),
        "ran.threads": config.threads or torch.get_num_threads(),
        "ran.parameters": model.num_parameters(),
    }


def ceiling_tag(leaks: LeakReport, split: str) -> dict[str, str]:
    """Return the best P@1 that any predictor can have on a split, as a tag of its run."""
    ceiling = leaks.splits.get(split, {}).get("top1_ceiling")
    return {} if ceiling is None else {"retrieval.top1_ceiling": f"{ceiling:.4f}"}


def logged_latency(timing: Mapping[str, float]) -> dict[str, float]:
    """Return the latency that is a metric of a run: the median; the rest is in the table."""
    return {name: value for name, value in timing.items() if name == LATENCY}


def track_check(dataset: Dataset, data: Path, report: LeakReport) -> str:
    """Log a leak report as a run of its own; returns the run's id.

    Its files are in the folder ``outputs/<run id>``. Few numbers are metrics of the run, because
    MLflow draws a chart of each.
    """

    def folder_of(run_id: str) -> Path:
        folder = resolve_output("outputs") / run_id
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    verdicts = {"no_leak": gates.dataset_leak_gate(report.leaks)}
    with track(
        dataset,
        data,
        output_dir=Path.cwd(),
        run_name=f"check {data.name}",
        tags={"kind": "data check"} | (report.sample.tags() if report.sample else {}),
        system_metrics=False,
        folder_of=folder_of,
    ) as run:
        run.log_results(report.headline(), verdicts, {NOTE: check_note(report, verdicts)})
        log_leaks(run, report, folder_of(run.run_id))
    return run.run_id
