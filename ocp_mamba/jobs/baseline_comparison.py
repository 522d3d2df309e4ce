"""The quality job: train the model and its baselines with several seeds, and make one table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ocp_mamba.baselines.checkpoint import SavedPredictor
from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.baselines.simple import Predictor, cheap_baselines
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import ConfigError, DatasetError, JobError
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.artifacts import log_texts
from ocp_mamba.jobs.common import ComparisonJob, Log, check_dataset_and_log, open_data
from ocp_mamba.jobs.preconditions import require_trainable
from ocp_mamba.jobs.train_once import TrainedModels, Training, history_of, preset_settings
from ocp_mamba.reports.baseline_table import Quality, to_dict, to_markdown
from ocp_mamba.reports.rows import Row, metric_name
from ocp_mamba.reports.tables import COLUMNS
from ocp_mamba.tracking.run import TRAINING_INPUTS, TrackedRun
from ocp_mamba.tracking.session import config_params, track

MODEL, HEDGED = "OCPMambaLVM", "hedged"
TRAIN_ONLY, TABLE_ONLY = "train", "table"


@dataclass(frozen=True, kw_only=True)
class QualityJob(ComparisonJob):
    """What is compared; the trained baselines get the model's number of parameters.

    Attributes:
        split: the split to evaluate on. Training never uses "test".
        only: "train" trains and evaluates nothing; "table" evaluates and trains nothing.
    """

    split: str = "val"
    only: str | None = None


def run_quality(job: QualityJob, log: Log) -> Quality | None:
    """Train what is missing, evaluate every predictor on the split, track and write the table.

    Returns:
        The table; None where the job only trains.

    Raises:
        DatasetError: a split that is needed has no examples, or see `open_data`.
        JobError: only the table was asked for, and a trained model is missing.
    """
    dataset = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    require_trainable(dataset, job.data, job.model)
    if dataset.n_examples(job.split) == 0:
        raise DatasetError(f"{job.data}: the {job.split} split has no OCP sequences to evaluate on")
    check_dataset_and_log(dataset, log, job.train.min_context)
    index = BankIndex(dataset.bank)
    trainings, facts = _trainings(job)
    models = TrainedModels(job.models, log, progress=job.progress)
    models.expect(len(trainings))
    missing = [t for t in trainings if not models.path(t, dataset).exists()]
    if job.only == TABLE_ONLY and missing:
        raise JobError(
            f"{job.models} has no {'; no '.join(map(str, missing))} of these settings on this "
            "dataset; leave `--only table` out to train what is missing"
        )
    if job.only == TRAIN_ONLY:
        for training in trainings:
            models.get(training, dataset, index)
        log(
            f"\n{len(trainings)} trained models are in {job.models}; nothing was evaluated or "
            "tracked"
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
        saved = [models.get(training, dataset, index) for training in trainings]
        rows = _Rows(job, run, dataset, index, log)
        quality = rows.table(trainings, saved, facts)
        _write(job, run, quality, log)
    return quality


def _trainings(job: QualityJob) -> tuple[list[Training], dict[str, str]]:
    """Every training, ordered by seed, so that one seed is complete before the next.

    Returns:
        The trainings, and the notes of the table about rows that it does not have.
    """
    trainings: list[Training] = []
    facts: dict[str, str] = {}
    for seed in job.seeds:
        config = replace(job.train, seed=seed)
        trainings.append(Training(MODEL, job.model, config))
        try:
            model, hedged = preset_settings(job, HEDGED)
            trainings.append(Training(HEDGED, model, replace(hedged, seed=seed)))
        except ConfigError as error:
            facts[f"{HEDGED} not run:"] = str(error)
        trainings += [Training(kind, job.model, config, kind) for kind in TRAINED_BASELINES]
    return trainings, facts


class _Rows:
    """Evaluates predictors on the split; each evaluation is tracked as a child run."""

    def __init__(
        self, job: QualityJob, run: TrackedRun, dataset: Dataset, index: BankIndex, log: Log
    ) -> None:
        self._job, self._run, self._log = job, run, log
        self._dataset, self._index = dataset, index

    def table(
        self,
        trainings: Sequence[Training],
        saved: Sequence[SavedPredictor],
        facts: dict[str, str],
    ) -> Quality:
        """Return a row for each cheap baseline, and for each trained model over its seeds."""
        rows = {
            name: Row(name, [self._cheap(name, predictor)])
            for name, predictor in cheap_baselines(self._dataset).items()
        }
        for training, model in zip(trainings, saved, strict=True):
            evaluation = self._trained(training, model)
            row = rows.get(training.name) or Row(
                training.name, [], model.model.num_parameters(), 0.0
            )
            minutes = (row.minutes or 0.0) + float(model.loop["minutes"]) / len(self._job.seeds)
            rows[training.name] = replace(
                row, evaluations=[*row.evaluations, evaluation], minutes=minutes
            )
        precisions = {model.loop["ran"]["ran.precision"] for model in saved}
        facts = {"trained in": " and ".join(sorted(precisions))} | facts
        return Quality(rows.pop(MODEL), list(rows.values()), self._job.seeds, facts)

    def _cheap(self, name: str, predictor: Predictor) -> Evaluation:
        evaluation = self._evaluate(name, predictor)
        self._run.log_child(
            name, {"predictor": name}, dict(evaluation.headline()), self._tags(evaluation)
        )
        return evaluation

    def _trained(self, training: Training, saved: SavedPredictor) -> Evaluation:
        evaluation = self._evaluate(str(training), saved.model)
        history = history_of(saved)
        self._run.log_child(
            f"{training.name} seed {training.config.seed}",
            {
                "predictor": training.name,
                "train.seed": training.config.seed,
                **saved.loop["ran"],
                "best_epoch": saved.loop["best_epoch"],
                "epochs": len(history),
            },
            {**evaluation.headline(), "train_time_minutes": float(saved.loop["minutes"])},
            {**self._tags(evaluation), **saved.loop["alarms"]},
            history=history,
        )
        return evaluation

    def _evaluate(self, name: str, predictor: Predictor) -> Evaluation:
        split, data = self._job.split, self._dataset
        self._log(f"evaluating {name} on {data.n_examples(split):,} sequences of {split}")
        return evaluate(predictor, data, split, name=name, index=self._index)

    def _tags(self, evaluation: Evaluation) -> dict[str, str]:
        return {"kind": "quality", "evaluated.split": self._job.split, **evaluation.tags()}


def _write(job: QualityJob, run: TrackedRun, quality: Quality, log: Log) -> None:
    """Write the table, log it with the model's metrics and the verdicts, and print it."""
    table = to_markdown(quality)
    contents = {
        "quality.json": json.dumps(to_dict(quality), indent=1),
        "quality.md": table,
    }
    log_texts(run, contents, job.output)
    numbers = {metric_name(c): quality.model.figure(c).value for c in COLUMNS}
    verdicts = {f"verdict.{metric_name(c)}": quality.verdict(c) for c in COLUMNS}
    run.log_results(numbers, tags=verdicts, split=job.split)
    files = ", ".join(str(job.output / name) for name in contents)
    log(f"\n{table}\n\nwrote {files}, run {run.run_id}")
