"""The variants job: train the base and its variants, evaluate them on val, write the table."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from ocp_mamba.baselines.checkpoint import SavedPredictor
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.analysis.subset import Subset, draw_subset
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import ConfigError, DatasetError, VariantsError, first_line
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.artifacts import log_leaks, log_texts
from ocp_mamba.jobs.common import ComparisonJob, Log, check_dataset_and_log, open_data
from ocp_mamba.jobs.preconditions import require_trainable
from ocp_mamba.jobs.train_once import TrainedModels, Training, history_of, preset_settings
from ocp_mamba.presets import BASE, PRESETS, SCALING, VARIANTS
from ocp_mamba.reports import variant_table
from ocp_mamba.reports.baseline_table import Row
from ocp_mamba.reports.plots import plot_variants
from ocp_mamba.reports.variant_table import (
    FAILED,
    NOT_RUN,
    SCALING_METRICS,
    Comparison,
    Scaling,
    Variant,
)
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.session import config_params, track
from ocp_mamba.training.schedule import make_plan

T = TypeVar("T")
HALF = 0.5


class _NotRunError(Exception):
    """The variant cannot differ from the base on this dataset."""


@dataclass(frozen=True, kw_only=True)
class VariantsJob(ComparisonJob):
    """What is compared with the base.

    Attributes:
        only: names of `VARIANTS` or `ABLATIONS`.
    """

    only: tuple[str, ...] = VARIANTS


@dataclass(frozen=True)
class _Trained:
    """The trainings of one variant, one per seed, evaluated on val."""

    evaluations: Sequence[Evaluation]
    parameters: int
    steps: int
    minutes: float

    def row(self, name: str) -> Row:
        return Row(name, self.evaluations, self.parameters, self.minutes)


def run_variants(job: VariantsJob, log: Log) -> Comparison:
    """Train what is missing, evaluate the base and each variant on val, track and write the table.

    The base comes first. A variant that fails gets a row with the reason, and the others go on.

    Raises:
        DatasetError, ConfigError, TrainingError, TrackingError: the base cannot be trained, or see
            `open_data`.
        VariantsError: a variant failed; it is raised after the table is written.
    """
    dataset = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    require_trainable(dataset, job.data, job.model)
    leaks = check_dataset_and_log(dataset, log, job.train.min_context)
    with track(
        dataset,
        job.data,
        output_dir=job.output,
        experiment=job.experiment,
        run_name="variants",
        params={
            **config_params(model=job.model, train=job.train),
            "train.seed": ",".join(map(str, job.seeds)),
            "variants.only": ",".join(job.only),
        },
        tags={"kind": "variants", "metrics.version": METRICS_VERSION},
        system_metrics=False,
    ) as run:
        run.log_results(leaks.headline())
        log_leaks(run, leaks, job.output)
        rows = _Rows(job, run, log)
        comparison = _compare(rows, dataset)
        if comparison.failed:
            raise VariantsError(f"failed variants: {', '.join(comparison.failed)}")
    return comparison


def _compare(rows: _Rows, dataset: Dataset) -> Comparison:
    """Train and evaluate all; the table is written after each variant."""
    job = rows.job
    index = BankIndex(dataset.bank)
    rows.expect(1 + sum(_will_run(job, name, dataset) for name in job.only))
    trained = rows.train(BASE, job.model, job.train, dataset, index)
    base = Variant(BASE, PRESETS[BASE].code, trained.row(BASE), trained.steps)
    comparison = Comparison(base, (), None, job.seeds)
    for name in job.only:
        rows.write(comparison)
        if name == SCALING:
            comparison = replace(comparison, scaling=_scale(rows, dataset, trained))
        else:
            variant = _try(rows, name, dataset, index)
            comparison = replace(comparison, variants=[*comparison.variants, variant])
    rows.log_results(comparison)
    return comparison


def _try(rows: _Rows, name: str, dataset: Dataset, index: BankIndex) -> Variant:
    code = PRESETS[name].code

    def attempt() -> Variant:
        model, config, note = variant_settings(rows.job, name, dataset)
        trained = rows.train(name, model, config, dataset, index)
        return Variant(name, code, trained.row(name), trained.steps, reason=note)

    return rows.guard(
        name, attempt, lambda state, why: Variant(name, code, state=state, reason=why)
    )


def variant_settings(
    job: VariantsJob, name: str, dataset: Dataset
) -> tuple[ModelConfig, TrainConfig, str]:
    """Return a variant's settings on a dataset, and a note for the reader of its metrics.

    Raises:
        Exception: a `_NotRunError` with the reason why the variant is not run.
        ConfigError: the preset does not fit the base's settings.
    """
    preset = PRESETS[name]
    model, config = preset_settings(job, name)
    note = ""
    if preset.relations:
        if dataset.chain_relation is None:
            raise _NotRunError("the dataset has no relations")
        model = replace(model, relations=dataset.relations)
    if preset.model.get("d_tmd"):
        if dataset.chain_tmd is None or not dataset.chain_tmd.any():
            raise _NotRunError("the dataset has no TMD codes")
        blank = float(1 - dataset.chain_tmd.any(axis=1).mean())
        note = f"{blank:.1%} of the chains have no TMD codes" if blank else ""
    if (model, config) == (job.model, job.train):
        raise _NotRunError("the base is that already")
    return model, config, note


def _will_run(job: VariantsJob, name: str, dataset: Dataset) -> bool:
    try:
        return name == SCALING or bool(variant_settings(job, name, dataset))
    except (_NotRunError, ConfigError):
        return False


def _scale(rows: _Rows, dataset: Dataset, base: _Trained) -> Scaling:
    def attempt() -> Scaling:
        try:
            half = draw_subset(dataset, HALF)
        except DatasetError as error:
            raise _NotRunError(str(error)) from error
        for split in ("train", "val"):
            if half.dataset.n_examples(split) == 0:
                raise _NotRunError(f"half of the concepts leaves no {split} sequences")
        index = BankIndex(half.dataset.bank)
        job = rows.job
        trained = rows.train(SCALING, job.model, job.train, half.dataset, index)
        return _scaling(dataset, half, base, trained)

    return rows.guard(
        SCALING,
        attempt,
        lambda state, why: Scaling({}, np.array([]), {}, state=state, reason=why),
    )


def _scaling(dataset: Dataset, half: Subset, whole: _Trained, halved: _Trained) -> Scaling:
    """Compare the models of all concepts and of half of them on the half's val examples."""
    first = whole.evaluations[0]
    shared = np.isin(first.chains, half.chains)
    assert np.array_equal(first.chains[shared], half.chains[halved.evaluations[0].chains])
    values = {
        name: (
            np.stack([e.per_example[metric][shared] for e in whole.evaluations]),
            np.stack([e.per_example[metric] for e in halved.evaluations]),
        )
        for name, metric in SCALING_METRICS.items()
    }
    sizes = {
        "concepts": (dataset.n_concepts, half.dataset.n_concepts),
        "train sequences": (dataset.n_examples("train"), half.dataset.n_examples("train")),
    }
    return Scaling(values, first.families[shared], sizes, halved.minutes)


class _Rows:
    """Makes the rows of the table; each training is tracked as a child run."""

    def __init__(self, job: VariantsJob, run: TrackedRun, log: Log) -> None:
        self.job, self.run_id, self.log = job, run.run_id, log
        self._run = run
        self._models = TrainedModels(job.models, log, progress=job.progress)
        job.output.mkdir(parents=True, exist_ok=True)

    def expect(self, variants_to_train: int) -> None:
        """Set the number of variants to train, the base included."""
        self._models.expect(len(self.job.seeds) * variants_to_train)

    def train(
        self, name: str, model: ModelConfig, config: TrainConfig, data: Dataset, index: BankIndex
    ) -> _Trained:
        """Train a variant with each seed, unless its file is there, and evaluate it on val."""
        evaluations, minutes = [], []
        for seed in self.job.seeds:
            training = Training(name, model, replace(config, seed=seed))
            saved = self._models.get(training, data, index)
            evaluation = evaluate(saved.model, data, "val", name=str(training), index=index)
            evaluations.append(evaluation)
            minutes.append(float(saved.loop["minutes"]))
            steps = self._log_child(training, saved, evaluation, data)
        parameters = saved.model.num_parameters()
        return _Trained(evaluations, parameters, steps, float(np.mean(minutes)))

    def _log_child(
        self, training: Training, saved: SavedPredictor, evaluation: Evaluation, data: Dataset
    ) -> int:
        """Log a training as a child run; returns its optimizer steps."""
        history = history_of(saved)
        steps = sum(make_plan(data, training.config).steps[: len(history)])
        self._run.log_child(
            f"{training.name} seed {training.config.seed}",
            {
                **config_params(model=training.model, train=training.config),
                "variant": training.name,
                "dataset.fingerprint": data.fingerprint,
                **saved.loop["ran"],
                "ran.steps": steps,
                "best_epoch": saved.loop["best_epoch"],
            },
            {**evaluation.flat(), "train_time_minutes": float(saved.loop["minutes"])},
            {"kind": "variant", **evaluation.tags(), **saved.loop["alarms"]},
            history=history,
        )
        return steps

    def guard(self, name: str, attempt: Callable[[], T], otherwise: Callable[[str, str], T]) -> T:
        """Return the result of ``attempt``, or of ``otherwise`` where the attempt raises.

        Args:
            name: of the variant.
            attempt: trains and evaluates it.
            otherwise: makes a result from a state, "not run" or "failed", and the reason.
        """
        try:
            return attempt()
        except _NotRunError as error:
            state, reason = NOT_RUN, str(error)
        except Exception as error:
            state, reason = FAILED, f"{type(error).__name__}: {first_line(error)}"
            trace = self.job.output / f"failed_{name}.txt"
            trace.write_text(traceback.format_exc(), encoding="utf-8")
            self._run.log_artifact(trace, "reports")
        self.log(f"\n{name}: {state}: {reason}")
        return otherwise(state, reason)

    def write(self, comparison: Comparison) -> list[Path]:
        """Write the table so far, its numbers and its plot, and log them; returns the files."""
        folder = self.job.output
        contents = {
            "variants.json": json.dumps(variant_table.to_dict(comparison), indent=1),
            "variants.md": variant_table.to_markdown(comparison),
        }
        log_texts(self._run, contents, folder)
        plot = plot_variants(variant_table.drawn(comparison), folder / "variants.png")
        self._run.log_artifact(plot, "reports")
        return [*(folder / name for name in contents), plot]

    def log_results(self, comparison: Comparison) -> None:
        """Log the metrics and verdicts on the parent run, and print the table."""
        files = self.write(comparison)
        states = {f"variant.{v.name}": v.state for v in comparison.variants}
        verdicts = {}
        if comparison.scaling is not None:
            verdicts = {
                f"scaling_{metric}": comparison.scaling.gate(name)
                for name, metric in SCALING_METRICS.items()
            }
        self._run.log_results(variant_table.numbers(comparison), verdicts, states)
        self.log(f"\n{variant_table.to_markdown(comparison)}")
        self.log(f"\nwrote {', '.join(map(str, files))}, run {self.run_id}")
