"""The transfer job: a model and its baselines on a dataset that they have never seen.

Every predictor is evaluated as it is (zero-shot) and after k train chains of the new dataset: the
model is fine-tuned on them, the baselines are fitted on them, on the source, and on both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from ocp_mamba.baselines.checkpoint import SavedPredictor
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.analysis.train_chains import draw_train_chains, with_train_chains
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError, JobError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.exposure import TrainedOn
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.names import HEADLINE
from ocp_mamba.jobs.artifacts import log_texts
from ocp_mamba.jobs.common import Log, open_data
from ocp_mamba.jobs.open_model import (
    BASELINE_PREFIX,
    declared,
    open_predictor,
    require_conditions,
    short_name,
)
from ocp_mamba.jobs.preconditions import require_writable
from ocp_mamba.jobs.train_once import history_of
from ocp_mamba.jobs.transfer.fine_tune import FineTuned
from ocp_mamba.jobs.transfer.predictors import (
    FITTED,
    MODEL,
    Evaluator,
    Residual,
    now_learnt,
    residual_forms,
)
from ocp_mamba.jobs.transfer.residual import Interpolated
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.reports.baseline_table import Quality
from ocp_mamba.reports.rows import metric_name
from ocp_mamba.reports.tables import COLUMNS
from ocp_mamba.reports.transfer_table import Transfer, to_dict, to_markdown
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.session import EXPERIMENT, track

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class TransferJob:
    """What is compared.

    Attributes:
        model: a ``.pt``, ``models:/…`` or ``runs:/…``.
        source: the dataset that the model was trained on; baselines are fitted on it.
        new: the dataset to evaluate on.
        chains: numbers of train chains of the new dataset, as text; ``all`` for every one.
        train: settings of the fine-tuning; the seed is replaced by each of ``seeds``.
        seeds: of the draws of chains, and of the fine-tuning.
        split: of the new dataset.
        residual: have rows in residual form too, see `residual`.
        output: folder of the table, made where it does not exist.
        models: folder of the fine-tuned models, made where it does not exist.
        experiment: of the MLflow runs.
        allow_pickle: see `open_data`.
        progress: show progress bars.
    """

    model: str
    source: Path
    new: Path
    chains: tuple[str, ...]
    train: TrainConfig
    seeds: tuple[int, ...]
    split: str = "val"
    residual: bool = False
    output: Path
    models: Path
    experiment: str = EXPERIMENT
    allow_pickle: bool = False
    progress: bool = True


@dataclass(frozen=True)
class _Opened:
    """Everything that the job reads, checked against each other."""

    source: Dataset
    new: Dataset
    model: NextVectorModel
    trained_on: TrainedOn
    facts: dict[str, str]


def run_transfer(job: TransferJob, log: Log) -> Transfer:
    """Evaluate, fine-tune what is missing, track and write the table.

    The same command goes on after a stop: what was fine-tuned is not trained again.

    Raises:
        DatasetError: a split that is needed is empty, or has fewer chains than asked for.
        JobError: the model is a baseline, or does not go with a dataset.
        EncoderMismatchError: model and datasets are not of one encoder.
    """
    if job.model.startswith(BASELINE_PREFIX):
        raise JobError(
            f"--model {job.model}: the baselines are in the table of every model; name a .pt, "
            "models:/… or runs:/…"
        )
    require_writable(job.output)
    opened = _open(job, log)
    with track(
        opened.new,
        job.new,
        output_dir=job.output,
        experiment=job.experiment,
        run_name=f"transfer {job.split}",
        params={
            "model": short_name(job.model),
            "source": job.source.name,
            "source.fingerprint": opened.source.fingerprint[:12],
            "chains": ",".join(job.chains),
            "train.seed": ",".join(map(str, job.seeds)),
            "train.lr": job.train.lr,
            "train.max_epochs": job.train.max_epochs,
            "train.batch_size": job.train.batch_size,
            "evaluated.split": job.split,
        },
        tags={
            "kind": "transfer",
            "metrics.version": METRICS_VERSION,
            "test_split_evaluated": str(job.split == "test").lower(),
        },
        inputs={"train": "fine-tuning", job.split: "evaluation"},
        system_metrics=False,
    ) as run:
        transfer = _transfer(job, opened, run)
        _write(job, run, transfer, log)
    return transfer


def _open(job: TransferJob, log: Log) -> _Opened:
    source, new = (
        open_data(path, allow_pickle=job.allow_pickle, log=log) for path in (job.source, job.new)
    )
    for dataset, path, splits in (
        (source, job.source, ("train", "val")),
        (new, job.new, ("train", job.split)),
    ):
        for split in splits:
            if dataset.n_examples(split) == 0:
                raise DatasetError(f"{path}: the {split} split has no OCP sequences")
    train_chains = len(new.chains_in("train"))
    for number in job.chains:
        if number != ALL and int(number) > train_chains:
            raise DatasetError(
                f"--chains {number}: the train split of {job.new} has {train_chains} chains; give "
                "fewer, or all"
            )
    found = open_predictor(job.model, new, {})
    if not isinstance(found.predictor, NextVectorModel):
        raise JobError(f"--model {job.model}: no model that can be fine-tuned")
    gates.require_one_encoder(job.model, found.encoder, source)
    gates.require_one_encoder(job.model, found.encoder, new)
    require_conditions(job.model, found.predictor, source)
    trained_on = found.trained_on
    if trained_on is None or trained_on.learnt is None:
        trained_on = declared(source, job.source.name)
    facts = {"the model learnt": trained_on.words}
    return _Opened(source, new, found.predictor, trained_on, facts)


def _transfer(job: TransferJob, opened: _Opened, run: TrackedRun) -> Transfer:
    rounds: dict[str, Quality] = {}
    facts = dict(opened.facts)
    residual: Residual | None = None
    if job.residual:
        residual = residual_forms(opened.model, opened.source)
        form = Interpolated(opened.model, residual.weights)
        facts["residual forms were chosen by"] = f"{residual.chosen_by}: {form}"
    with _told(job, opened) as tell:
        evaluator = Evaluator(opened.new, job.split, tell)
        fixed = evaluator.fixed(opened.source, residual, opened.trained_on)
        tuned = FineTuned(job.models, opened.model, progress=job.progress)
        for number in job.chains:
            few = _few(job, opened.new, number)
            learnt = now_learnt(opened.trained_on, few, job.train.min_context)
            rows = [evaluator.again(row, learnt) for row in fixed]
            rows += evaluator.fitted(opened.source, few, learnt)
            saved = _fine_tuned(job, opened, tuned, few, tell)
            models = [s.model for s in saved] or [opened.model]
            if residual:
                weights = residual.weights
                forms = [Interpolated(model, weights) for model in models]
                rows.append(evaluator.row("model, interpolated", forms, learnt))
            model = evaluator.row(MODEL, models, learnt)
            quality = Quality(model, rows, job.seeds, {})
            rounds[number] = quality
            _track(job, run, number, quality, saved)
    return Transfer(rounds, len(opened.new.chains_in("train")), facts)


def _few(job: TransferJob, new: Dataset, number: str) -> list[Dataset]:
    """The new dataset with k train chains: one for each seed, and one alone for all of them."""
    if number == "0":
        return []
    if number == ALL:
        return [with_train_chains(new, new.chains_in("train"))]
    return [with_train_chains(new, draw_train_chains(new, int(number), seed)) for seed in job.seeds]


def _fine_tuned(
    job: TransferJob,
    opened: _Opened,
    tuned: FineTuned,
    few: Sequence[Dataset],
    tell: Callable[[str], None],
) -> list[SavedPredictor]:
    """The model after the chains of each seed; empty for none."""
    saved = []
    for place, seed in enumerate(job.seeds if few else ()):
        part = few[place % len(few)]
        config = replace(job.train, seed=seed)
        learnt = now_learnt(opened.trained_on, [part], config.min_context).learnt
        tell(f"fine-tuning on {len(part.chains_in('train')):,} chains, seed {seed}")
        saved.append(tuned.get(part, config, learnt))
    return saved


@contextmanager
def _told(job: TransferJob, opened: _Opened) -> Iterator[Callable[[str], None]]:
    """A bar with a step for each fine-tuning and evaluation."""
    seeds, extra = len(job.seeds), int(job.residual)
    steps = 2 + len(FITTED) + 2 * extra
    for number in job.chains:
        draws = 1 if number == ALL else seeds
        steps += 1 + extra if number == "0" else 2 * len(FITTED) * draws + seeds * (2 + extra)
    with tqdm(total=steps, unit="step", disable=not job.progress) as bar:
        bar.update(0)

        def tell(what: str) -> None:
            bar.set_description(what)
            bar.update(1)

        yield tell


def _track(
    job: TransferJob,
    run: TrackedRun,
    number: str,
    quality: Quality,
    saved: Sequence[SavedPredictor],
) -> None:
    """Log a child run for each seed, with the other rows as tags; no tag's name has brackets."""
    others = {
        f"baseline.{re.sub('[^a-z_ ]', '', row.name)}": ", ".join(
            f"{metric_name(c)} {row.figure(c)}" for c in COLUMNS if metric_name(c) in HEADLINE
        )
        for row in quality.others
    }
    for place, evaluation in enumerate(quality.model.evaluations):
        seed = job.seeds[place] if saved else None
        trained: Mapping[str, object] = {"train.seed": seed} if saved else {}
        run.log_child(
            f"{number} chains" + (f" seed {seed}" if saved else ""),
            {"predictor": MODEL, "chains": number, **trained},
            dict(evaluation.headline()),
            {"kind": "transfer", "evaluated.split": job.split, **evaluation.tags(), **others},
            history=history_of(saved[place]) if saved else (),
        )


def _write(job: TransferJob, run: TrackedRun, transfer: Transfer, log: Log) -> None:
    """Write the table, log it with the model's metrics and the verdicts, and print it."""
    table = to_markdown(transfer)
    contents = {
        "transfer.json": json.dumps(to_dict(transfer), indent=1),
        "transfer.md": table,
    }
    log_texts(run, contents, job.output)
    numbers, verdicts = {}, {}
    for chains, quality in transfer.rounds.items():
        for column in COLUMNS:
            name = f"{metric_name(column)}_{chains}_chains"
            numbers[name] = quality.model.figure(column).value
            verdicts[f"verdict.{name}"] = quality.verdict(column)
    run.log_results(numbers, tags=verdicts, split=job.split)
    files = ", ".join(str(job.output / name) for name in contents)
    log(f"\n{table}\n\nwrote {files}, run {run.run_id}")
