"""The variants job: train the base and each planned variant, evaluate them on val, write the table.

A training leaves one ``.pt`` in the output folder, named after everything that it depends on. One
that is there is not trained again, so that a job that was cut off goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ocp_mamba.config import ModelConfig, TrainConfig, override
from ocp_mamba.data.analysis.subset import Subset, draw_subset
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import ConfigError, DatasetError, VariantsError
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.common import Log, check_dataset_and_log, open_data, what_ran
from ocp_mamba.jobs.preconditions import require_trainable
from ocp_mamba.model.checkpoint import load_checkpoint, save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
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
from ocp_mamba.tracking.session import EXPERIMENT, config_params, track
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.schedule import make_plan
from ocp_mamba.training.trainer import fit

T = TypeVar("T")
HALF = 0.5


class _NotRunError(Exception):
    """This variant says nothing on this dataset."""


@dataclass(frozen=True)
class VariantsJob:
    """What is compared with what.

    Attributes:
        data: a dataset file, or an older npz.
        output: folder of the trained models and the table, made where it does not exist.
        model: shape of the base.
        train: settings of the base; its seed is replaced by each of ``seeds``.
        seeds: at least one.
        only: which of `VARIANTS`; the base is always trained.
        experiment: of the MLflow runs.
        allow_pickle: see `open_data`.
        progress: show progress bars.
    """

    data: Path
    output: Path
    model: ModelConfig
    train: TrainConfig
    seeds: tuple[int, ...]
    only: tuple[str, ...] = VARIANTS
    experiment: str = EXPERIMENT
    allow_pickle: bool = False
    progress: bool = True


@dataclass(frozen=True)
class _Trained:
    """The trainings of one variant, a seed each, evaluated on val."""

    evaluated: Sequence[Evaluation]
    parameters: int
    steps: int
    minutes: float

    def row(self, name: str) -> Row:
        return Row(name, self.evaluated, self.parameters, self.minutes)


def run_variants(job: VariantsJob, log: Log) -> Comparison:
    """Train what is missing, evaluate the base and each variant on val, track and write the table.

    The base comes first; a variant that fails is a row that says so, and the others go on.

    Raises:
        DatasetError, ConfigError, TrainingError, TrackingError: the base cannot be trained, or see
            `open_data`.
        VariantsError: after all is written, where a variant failed.
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
        run.log_results(leaks.figures())
        bench = _Bench(job, run, log)
        comparison = _compare(bench, dataset)
        if comparison.failed:
            raise VariantsError(f"failed variants: {', '.join(comparison.failed)}")
    return comparison


def _compare(bench: _Bench, dataset: Dataset) -> Comparison:
    """Train and evaluate all; after each variant the table is written as it stands."""
    job = bench.job
    index = BankIndex(dataset.bank)
    bench.plan(1 + sum(_says_something(job, name, dataset) for name in job.only))
    trained = bench.train(BASE, job.model, job.train, dataset, index)
    base = Variant(BASE, PRESETS[BASE].title, trained.row(BASE), trained.steps)
    comparison = Comparison(base, (), None, job.seeds)
    for name in job.only:
        bench.write(comparison)
        if name == SCALING:
            comparison = replace(comparison, scaling=_scale(bench, dataset, trained))
        else:
            variant = _try(bench, name, dataset, index)
            comparison = replace(comparison, variants=[*comparison.variants, variant])
    bench.conclude(comparison)
    return comparison


def _try(bench: _Bench, name: str, dataset: Dataset, index: BankIndex) -> Variant:
    title = PRESETS[name].title

    def attempt() -> Variant:
        model, config, known = variant_settings(bench.job, name, dataset)
        trained = bench.train(name, model, config, dataset, index)
        return Variant(name, title, trained.row(name), trained.steps, reason=known)

    return bench.guard(
        name, attempt, lambda state, why: Variant(name, title, state=state, reason=why)
    )


def variant_settings(
    job: VariantsJob, name: str, dataset: Dataset
) -> tuple[ModelConfig, TrainConfig, str]:
    """Return a variant's settings on a dataset, and what a reader of its figures has to know.

    Raises:
        Exception: a `_NotRunError` that says why the variant would say nothing here.
    """
    preset = PRESETS[name]
    model, config, known = override(job.model, **preset.model), job.train, ""
    config = override(config, **preset.train)
    if preset.relations:
        if dataset.chain_relation is None:
            raise _NotRunError("the dataset has no relations")
        model = replace(model, relations=dataset.relations)
    if preset.model.get("d_tmd"):
        if dataset.chain_tmd is None or not dataset.chain_tmd.any():
            raise _NotRunError("the dataset has no TMD codes")
        blank = float(1 - dataset.chain_tmd.any(axis=1).mean())
        known = f"{blank:.1%} of the chains have no TMD codes" if blank else ""
    if (model, config) == (job.model, job.train):
        raise _NotRunError("the base is that already")
    return model, config, known


def _says_something(job: VariantsJob, name: str, dataset: Dataset) -> bool:
    try:
        return name == SCALING or bool(variant_settings(job, name, dataset))
    except (_NotRunError, ConfigError):
        return False


def _scale(bench: _Bench, dataset: Dataset, base: _Trained) -> Scaling:
    def attempt() -> Scaling:
        try:
            half = draw_subset(dataset, HALF)
        except DatasetError as error:
            raise _NotRunError(str(error)) from error
        for split in ("train", "val"):
            if half.dataset.n_examples(split) == 0:
                raise _NotRunError(f"half of the concepts leaves no {split} sequences")
        index = BankIndex(half.dataset.bank)
        job = bench.job
        trained = bench.train(SCALING, job.model, job.train, half.dataset, index)
        return _scaling(dataset, half, base, trained)

    return bench.guard(
        SCALING,
        attempt,
        lambda state, why: Scaling({}, np.array([]), {}, state=state, reason=why),
    )


def _scaling(dataset: Dataset, half: Subset, whole: _Trained, halved: _Trained) -> Scaling:
    """Put the whole's model beside the half's on the half's val examples."""
    first = whole.evaluated[0]
    shared = np.isin(first.chains, half.chains)
    assert np.array_equal(first.chains[shared], half.chains[halved.evaluated[0].chains])
    values = {
        name: (
            np.stack([e.per_example[metric][shared] for e in whole.evaluated]),
            np.stack([e.per_example[metric] for e in halved.evaluated]),
        )
        for name, metric in SCALING_METRICS.items()
    }
    sizes = {
        "concepts": (dataset.n_concepts, half.dataset.n_concepts),
        "train sequences": (dataset.n_examples("train"), half.dataset.n_examples("train")),
    }
    return Scaling(values, first.families[shared], sizes, halved.minutes)


class _Bench:
    """Where variants are trained and evaluated, one after the other, each tracked as a child run."""

    def __init__(self, job: VariantsJob, run: TrackedRun, log: Log) -> None:
        self.job, self.run_id, self.log = job, run.run_id, log
        self._run = run
        self._left = 0
        self._seconds: list[float] = []
        job.output.mkdir(parents=True, exist_ok=True)

    def plan(self, variants_to_train: int) -> None:
        """Take down how many trainings there will be, to say how many are left."""
        self._left = len(self.job.seeds) * variants_to_train

    def train(
        self, name: str, model: ModelConfig, config: TrainConfig, data: Dataset, index: BankIndex
    ) -> _Trained:
        """Train a variant with each seed, unless its file is there, and evaluate it on val."""
        evaluated, minutes = [], []
        for seed in self.job.seeds:
            settings = replace(config, seed=seed)
            path = self._path(name, model, settings, data)
            self.log(f"\n{name}, seed {seed}: {self._ahead(path)}")
            started = time.perf_counter()
            if not path.exists():
                train_to_file(path, model, settings, data, index, progress=self.job.progress)
                self._seconds.append(time.perf_counter() - started)
            self._left -= 1
            saved = load_checkpoint(path)
            loaded = saved.build_model()
            figures = evaluate(loaded, data, "val", name=f"{name}, seed {seed}", index=index)
            history = [EpochRecord(**record) for record in saved.loop["history"]]
            steps = sum(make_plan(data, settings).steps[: len(history)])
            evaluated.append(figures)
            minutes.append(float(saved.loop["minutes"]))
            self._run.log_child(
                f"{name} seed {seed}",
                {
                    **config_params(model=model, train=settings),
                    "variant": name,
                    "dataset.fingerprint": data.fingerprint,
                    **saved.loop["ran"],
                    "ran.steps": steps,
                    "best_epoch": saved.loop["best_epoch"],
                },
                {**figures.flat(), "train_time_minutes": minutes[-1]},
                {"kind": "variant", **figures.tags(), **saved.loop["alarms"]},
                history=history,
            )
        return _Trained(evaluated, loaded.num_parameters(), steps, float(np.mean(minutes)))

    def guard(self, name: str, attempt: Callable[[], T], otherwise: Callable[[str, str], T]) -> T:
        """Attempt a variant; what says nothing here, or fails, becomes what ``otherwise`` makes.

        Args:
            name: of the variant.
            attempt: trains and evaluates it.
            otherwise: makes a result out of a state and its reason.
        """
        left = self._left
        try:
            return attempt()
        except _NotRunError as error:
            state, reason = NOT_RUN, str(error)
        except Exception as error:
            self._left = left - len(self.job.seeds)
            words = str(error).splitlines() or [""]
            state, reason = FAILED, f"{type(error).__name__}: {words[0]}"
            trace = self.job.output / f"failed_{name}.txt"
            trace.write_text(traceback.format_exc(), encoding="utf-8")
            self._run.log_artifact(trace, "reports")
        self.log(f"\n{name}: {state}: {reason}")
        return otherwise(state, reason)

    def write(self, comparison: Comparison) -> list[Path]:
        """Write the table, its numbers and its plot as they stand, and log them; returns them."""
        folder = self.job.output
        contents = {
            "variants.json": json.dumps(variant_table.to_dict(comparison), indent=1),
            "variants.md": variant_table.to_markdown(comparison),
        }
        files = [folder / name for name in contents]
        for path, content in zip(files, contents.values(), strict=True):
            path.write_text(content + "\n", encoding="utf-8")
        files.append(plot_variants(variant_table.drawn(comparison), folder / "variants.png"))
        for path in files:
            self._run.log_artifact(path, "reports")
        return files

    def conclude(self, comparison: Comparison) -> None:
        """Log every figure on the parent run, with the verdicts, and say the table."""
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

    def _ahead(self, path: Path) -> str:
        if path.exists():
            return f"trained before, {path.name}"
        if not self._seconds:
            return f"training, {self._left} to go"
        minutes = self._left * float(np.mean(self._seconds)) / 60
        return f"training, {self._left} to go, about {minutes:.0f} minutes at the mean so far"

    def _path(self, name: str, model: ModelConfig, config: TrainConfig, data: Dataset) -> Path:
        depends = [data.fingerprint, asdict(model), asdict(replace(config, threads=0))]
        key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
        return self.job.output / f"{name}-seed{config.seed}-{key}.pt"


def train_to_file(
    path: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    dataset: Dataset,
    index: BankIndex,
    *,
    progress: bool,
) -> None:
    """Train on a dataset's train split, keep the epoch that is best on val, and write its ``.pt``.

    The file appears whole, when its training has ended.
    """
    torch.manual_seed(config.seed)
    model = OCPMambaLVM(model_config)
    fitted = fit(model, dataset, config, validate=validator(dataset, index), progress=progress)
    loop = {
        "history": [asdict(record) for record in fitted.history],
        "best_epoch": fitted.best_epoch,
        "minutes": fitted.train_minutes,
        "ran": {name: str(value) for name, value in what_ran(model, dataset, config).items()},
        "alarms": {alarm.tag: str(alarm) for alarm in fitted.alarms},
    }
    save_checkpoint(
        path,
        model,
        dataset_fingerprint=dataset.fingerprint,
        encoder=dict(dataset.meta.get("encoder", {})),
        loop=loop,
    )
