"""The quality job: train the model and its negatives over several seeds, evaluate all, write the table.

A training leaves one ``.pt`` in the output folder, named after everything that it depends on. One
that is there is not trained again, so a job that was cut off goes on, and several processes can
share the seeds of one folder.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from ocp_mamba.baselines.checkpoint import SavedPredictor, load_predictor, save_baseline
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.baselines.simple import Predictor, cheap_baselines
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import DatasetError, JobError
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.common import Log, check_dataset_and_log, open_data
from ocp_mamba.jobs.preconditions import require_trainable
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.reports.baseline_table import COLUMNS, Quality, Row, to_dict, to_markdown
from ocp_mamba.tracking.run import TRAINING_INPUTS, TrackedRun
from ocp_mamba.tracking.session import EXPERIMENT, config_params, track
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.trainer import fit, resolve_precision

MODEL = "model"
TRAIN_ONLY, TABLE_ONLY = "train", "table"


@dataclass(frozen=True)
class QualityJob:
    """What the table is made of.

    Attributes:
        data: a dataset file, or an older npz.
        output: folder of the trained models and the table, made where it does not exist.
        model: shape of the model; the trained baselines get its number of parameters.
        train: settings of every training; its seed is replaced by each of ``seeds``.
        seeds: at least one.
        split: what is evaluated. Training never sees "test".
        only: "train" trains and evaluates nothing; "table" evaluates and trains nothing.
        experiment: of the MLflow run.
        allow_pickle: see `open_data`.
        progress: show progress bars.
    """

    data: Path
    output: Path
    model: ModelConfig
    train: TrainConfig
    seeds: tuple[int, ...]
    split: str = "val"
    only: str | None = None
    experiment: str = EXPERIMENT
    allow_pickle: bool = False
    progress: bool = True


@dataclass(frozen=True)
class _Training:
    """One training: of the model or a baseline, with one seed."""

    kind: str
    config: TrainConfig
    path: Path

    def __str__(self) -> str:
        return f"{self.kind}, seed {self.config.seed}"


def run_quality(job: QualityJob, log: Log) -> Quality | None:
    """Train what is missing, evaluate every predictor on the split, track and write the table.

    Returns:
        The table; None where the job only trains.

    Raises:
        DatasetError: a split that is needed has no examples, or see `open_data`.
        JobError: only the table was asked for, and a training is missing.
    """
    dataset = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    require_trainable(dataset, job.data, job.model)
    if dataset.n_examples(job.split) == 0:
        raise DatasetError(f"{job.data}: the {job.split} split has no OCP sequences to evaluate on")
    check_dataset_and_log(dataset, log, job.train.min_context)
    index = BankIndex(dataset.bank)
    units = _units(job, dataset)
    missing = [unit for unit in units if not unit.path.exists()]
    if job.only == TABLE_ONLY and missing:
        raise JobError(
            f"{job.output} has no {'; no '.join(str(unit) for unit in missing)} of these settings "
            "on this dataset; leave `--only table` away to train what is missing"
        )
    if job.only == TRAIN_ONLY:
        _train_all(job, units, dataset, index, log)
        log(
            f"\nwrote {len(units)} trained models to {job.output}; nothing was evaluated or tracked"
        )
        return None
    with track(
        dataset,
        job.data,
        output_dir=job.output,
        experiment=job.experiment,
        run_name=f"quality {job.split}",
        params={
            **config_params(model=job.model, train=job.train),
            "train.seed": ",".join(str(seed) for seed in job.seeds),
            "evaluated.split": job.split,
        },
        tags={
            "kind": "quality",
            "metrics.version": METRICS_VERSION,
            "test_split_evaluated": str(job.split == "test").lower(),
        },
        inputs={**TRAINING_INPUTS, job.split: "evaluation"},
        system_metrics=False,
    ) as run:
        _train_all(job, units, dataset, index, log)
        quality = _evaluate_all(job, run, units, dataset, index, log)
        _conclude(job, run, quality, log)
    return quality


def _units(job: QualityJob, dataset: Dataset) -> list[_Training]:
    """Every training, seed after seed, so that a part of the seeds is whole before the next."""
    found = []
    for seed in job.seeds:
        config = replace(job.train, seed=seed)
        for kind in (MODEL, *TRAINED_BASELINES):
            settings = [
                kind,
                dataset.fingerprint,
                asdict(job.model),
                asdict(replace(config, threads=0)),
            ]
            key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
            found.append(_Training(kind, config, job.output / f"{kind}-seed{seed}-{key}.pt"))
    return found


def _train_all(
    job: QualityJob, units: Sequence[_Training], dataset: Dataset, index: BankIndex, log: Log
) -> None:
    """Train each unit that has no file yet; a file appears whole, when its training has ended."""
    for number, unit in enumerate(units, 1):
        head = f"[{number} of {len(units)}] {unit}"
        if unit.path.exists():
            log(f"{head}: trained before, {unit.path.name}")
        else:
            log(f"{head}: training")
            log(f"{head}: {_train(job, unit, dataset, index)}")


def _train(job: QualityJob, unit: _Training, dataset: Dataset, index: BankIndex) -> str:
    """Train one unit on the train split, keep the epoch that is best on val, and write its file."""
    torch.manual_seed(unit.config.seed)
    model: NextVectorModel = OCPMambaLVM(job.model)
    if unit.kind != MODEL:
        torch.manual_seed(unit.config.seed)
        model = TRAINED_BASELINES[unit.kind](job.model, model.num_parameters())
    fitted = fit(
        model, dataset, unit.config, validate=validator(dataset, index), progress=job.progress
    )
    device = next(model.parameters()).device
    loop = {
        "history": [asdict(record) for record in fitted.history],
        "best_epoch": fitted.best_epoch,
        "minutes": fitted.train_minutes,
        "precision": resolve_precision(unit.config.precision, device),
        "alarms": {alarm.tag: str(alarm) for alarm in fitted.alarms},
    }
    save = save_checkpoint if isinstance(model, OCPMambaLVM) else save_baseline
    save(
        unit.path,
        model,  # type: ignore[arg-type]
        dataset_fingerprint=dataset.fingerprint,
        encoder=dict(dataset.meta.get("encoder", {})),
        loop=loop,
    )
    return (
        f"{model.num_parameters():,} parameters, {fitted.train_minutes:.1f} minutes, validation "
        f"cosine {fitted.best_cosine:.4f} at epoch {fitted.best_epoch}"
    )


def _evaluate_all(
    job: QualityJob,
    run: TrackedRun,
    units: Sequence[_Training],
    dataset: Dataset,
    index: BankIndex,
    log: Log,
) -> Quality:
    """Evaluate every predictor on the split and track each as a child run."""

    def evaluated(name: str, predictor: Predictor) -> Evaluation:
        log(f"evaluating {name} on {dataset.n_examples(job.split):,} sequences of {job.split}")
        return evaluate(predictor, dataset, job.split, name=name, index=index)

    cheap = {}
    for name, predictor in cheap_baselines(dataset).items():
        cheap[name] = Row(name, [evaluated(name, predictor)])
        _log_child(run, name, cheap[name].evaluated[0], {"predictor": name})
    trained: dict[str, Row] = {}
    precisions = set()
    for unit in units:
        saved = load_predictor(unit.path)
        figures = evaluated(str(unit), saved.model)
        _log_trained(run, unit, figures, saved)
        row = trained.get(unit.kind) or Row(saved.kind, [], saved.model.num_parameters(), 0.0)
        minutes = (row.minutes or 0.0) + float(saved.loop["minutes"]) / len(job.seeds)
        trained[unit.kind] = replace(row, evaluated=[*row.evaluated, figures], minutes=minutes)
        precisions.add(str(saved.loop["precision"]))
    others = [*cheap.values(), *(row for kind, row in trained.items() if kind != MODEL)]
    facts = {"trained in": " and ".join(sorted(precisions))}
    return Quality(trained[MODEL], others, job.seeds, facts)


def _log_trained(
    run: TrackedRun, unit: _Training, evaluated: Evaluation, saved: SavedPredictor
) -> None:
    history = [EpochRecord(**record) for record in saved.loop["history"]]
    _log_child(
        run,
        f"{unit.kind} seed {unit.config.seed}",
        evaluated,
        {
            "predictor": unit.kind,
            "train.seed": unit.config.seed,
            "ran.parameters": saved.model.num_parameters(),
            "ran.precision": saved.loop["precision"],
            "best_epoch": saved.loop["best_epoch"],
            "epochs": len(history),
        },
        history,
        {"train_time_minutes": float(saved.loop["minutes"])},
        saved.loop["alarms"],
    )


def _log_child(
    run: TrackedRun,
    name: str,
    evaluated: Evaluation,
    params: Mapping[str, object],
    history: Sequence[EpochRecord] = (),
    numbers: Mapping[str, float] | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    kind = {"kind": "quality", "evaluated.split": evaluated.split}
    run.log_child(
        name,
        params,
        {**evaluated.headline(), **(numbers or {})},
        {**kind, **evaluated.tags(), **(tags or {})},
        history=history,
    )


def _conclude(job: QualityJob, run: TrackedRun, quality: Quality, log: Log) -> None:
    """Write the table, log it with the model's figures and the verdicts, and say it."""
    table = to_markdown(quality)
    contents = {
        "quality.json": json.dumps(to_dict(quality), indent=1),
        "quality.md": table,
    }
    job.output.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        path = job.output / name
        path.write_text(content + "\n", encoding="utf-8")
        run.log_artifact(path, "reports")
    numbers: dict[str, float | None] = {}
    verdicts: dict[str, str] = {}
    for column, (metric, stratum) in COLUMNS.items():
        figure = quality.figure(quality.model, column)
        name = metric if stratum is None else f"{stratum}_{metric}"
        numbers[name] = figure.value
        verdicts[f"verdict.{name}"] = quality.verdict(column)
    run.log_results(numbers, tags=verdicts, split=job.split)
    files = ", ".join(str(job.output / name) for name in contents)
    log(f"\n{table}\n\nwrote {files}, run {run.run_id}")
