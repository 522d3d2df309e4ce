"""The evaluation job: evaluate a model or a baseline beside the cheap baselines, and track it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ocp_mamba.baselines.simple import Predictor, cheap_baselines
from ocp_mamba.data.analysis.sample import EvalLimits
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.decoders import Decoder, Vec2TextDecoder
from ocp_mamba.embeddings.encoders import Encoder, SentenceTransformerEncoder
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import DatasetError, DecoderError, JobError
from ocp_mamba.evaluation import gates, names
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.latency import inference_latency
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.common import (
    Log,
    ceiling_tag,
    check_dataset_and_log,
    evaluation_dataset,
    logged_latency,
    open_data,
)
from ocp_mamba.jobs.open_model import (
    BASELINE_PREFIX,
    Opened,
    declared,
    open_object,
    open_predictor,
    short_name,
)
from ocp_mamba.jobs.preconditions import require_writable
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.quantize import quantize
from ocp_mamba.reports.evaluation_page import Report, write_evaluation
from ocp_mamba.reports.note import run_note
from ocp_mamba.reports.tables import baseline_table, result_table
from ocp_mamba.tracking.metrics import Numbers
from ocp_mamba.tracking.session import config_params, track
from ocp_mamba.tracking.store import require_store
from ocp_mamba.tracking.tags import NOTE

SHOWN = (
    names.COSINE,
    names.P1,
    names.MRR,
    names.MARGIN,
    names.CONTEXT_MEAN_MARGIN,
    "contrastive_accuracy",
    names.ECHO,
    "vec2text_echo_similarity",
    "vec2text_echo_to_prediction",
    "cosine_to_global_mean",
    "prediction_variance",
    "target_variance",
    names.RECALL,
    names.LATENCY,
)


@dataclass(frozen=True)
class EvaluationJob:
    """What to evaluate, on what, and with what.

    Attributes:
        model: see `open_model.open_predictor`; the name of a predictor that is given as an object.
        data: a dataset file, a folder of shards, or an older npz; of a dataset that is given as an
            object, only the name is used.
        split: "train", "val" or "test".
        name: of the predictor in tables and in the report; None for `open_model.short_name`.
        output: folder for the page, the plots and ``gates.json``, made where it does not exist.
        encoder: name or folder of the echo loop's encoder; None lets the bank stand in for it.
        index: one of `embeddings.index.KINDS`.
        weights: one of `quantize.WEIGHTS`, how the model's matrices are stored.
        against: evaluate the cheap baselines too; gates that compare are ``not-run`` without them.
        decoder: "vec2text" to close the echo loop with it too; None leaves it out.
        trained_on: the dataset whose train split the predictor learnt from, as the caller says;
            used where the predictor itself does not say it.
        allow_pickle: see `open_data`.
        limits: up to what size data are evaluated whole.
        track: log an MLflow run.
        progress: show progress bars.
    """

    model: str
    data: Path
    split: str
    output: Path
    name: str | None = None
    encoder: str | None = None
    index: str = "exact"
    weights: str = "float32"
    against: bool = True
    decoder: str | None = None
    trained_on: Path | None = None
    allow_pickle: bool = False
    limits: EvalLimits = field(default_factory=EvalLimits)
    track: bool = True
    progress: bool = False


@dataclass(frozen=True)
class EvaluationOutcome:
    """What an evaluation found.

    Attributes:
        run_id: of the MLflow run; empty where none was logged.
        evaluation: of the predictor.
        baselines: evaluations of the cheap baselines on the same examples, by name.
        gates: verdicts by name: pass, fail or not-run.
        page: the report, an HTML file.
    """

    run_id: str
    evaluation: Evaluation
    baselines: Mapping[str, Evaluation]
    gates: Mapping[str, str]
    page: Path


def run_evaluation(job: EvaluationJob, log: Log) -> EvaluationOutcome:
    """Evaluate a model on a split, track it, and write its page, its plots and its gates.

    Raises:
        DatasetError: the split has no examples, or see `open_data`.
        JobError: the baseline is unknown, the dataset lacks what the model takes, or the output
            folder cannot be written.
        EncoderError, TrackingError: the encoder cannot be loaded, the store does not answer.
        EncoderMismatchError: the model's or the live encoder is not the bank's. A run tells of it.
    """
    whole = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    return evaluate_on(whole, job, log)


def evaluate_on(
    whole: Dataset,
    job: EvaluationJob,
    log: Log,
    predictor: Predictor | None = None,
    trained_on: Dataset | None = None,
) -> EvaluationOutcome:
    """Do the job on a dataset that is open already, of a predictor or of what ``job.model`` names.

    ``trained_on`` is as that of the job, of a dataset that is open already.

    Raises:
        DatasetError, JobError, EncoderError, EncoderMismatchError: as `run_evaluation`.
    """
    if whole.n_examples(job.split) == 0:
        raise DatasetError(f"{job.data}: the {job.split} split has no OCP sequences to evaluate on")
    require_writable(job.output)
    if job.track:
        require_store()
    dataset = evaluation_dataset(whole, job.limits, log, job.progress)
    compared = job.against or job.model.startswith(BASELINE_PREFIX)
    cheap = cheap_baselines(dataset) if compared else {}
    opened = _opened(job, dataset, cheap, predictor)
    opened = _with_declared(opened, job, whole, trained_on, log)
    encoder = SentenceTransformerEncoder(job.encoder) if job.encoder else None
    decoder, no_decoder = _open_decoder(job, dataset, log)
    leaks = check_dataset_and_log(dataset, log)
    with _run_of(job, whole, dataset) as run:
        if opened.model_id is not None:
            run.link_model(opened.model_id)
        with _mismatch_tracked(run):
            gates.require_one_encoder(job.model, opened.encoder, dataset)
            evaluated, baselines = _evaluate_all(job, opened, cheap, dataset, encoder, decoder, log)
        timing = {}
        if isinstance(opened.predictor, NextVectorModel):
            timing = inference_latency(opened.predictor)
        numbers = evaluated.flat() | timing
        verdicts = gates.evaluate_gates(
            evaluated,
            baselines,
            leaks=leaks.leaks,
            same_encoder=gates.same_encoder(opened.encoder, dataset.meta.get("encoder", {})),
        )
        report = Report(
            title=f"Evaluation of {evaluated.predictor} on the {job.split} split",
            evaluation=evaluated,
            dataset=dataset,
            baselines=baselines,
            gates=verdicts,
            facts={"run": run.run_id or "not tracked", "margin": margin_note(evaluated)},
            warnings=leaks.warnings,
        )
        run.log_results(
            evaluated.headline() | logged_latency(timing),
            verdicts,
            evaluated.tags()
            | ceiling_tag(leaks, job.split)
            | no_decoder
            | {NOTE: run_note(report)},
            split=job.split,
        )
        page = _write(run, report, job.output)
    log(baseline_table({**baselines, evaluated.predictor: evaluated}))
    log("\n" + result_table(numbers, verdicts, [n for n in SHOWN if n in numbers]))
    log(f"\nmargin {margin_note(evaluated)}\n\nwrote {page}, run {run.run_id or 'not tracked'}")
    return EvaluationOutcome(run.run_id, evaluated, baselines, verdicts, page)


class _Run(Protocol):
    """What an evaluation tells its run; a `TrackedRun` is one."""

    run_id: str

    def link_model(self, model_id: str) -> None: ...

    def log_results(
        self,
        numbers: Numbers,
        gates: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        split: str = "val",
    ) -> None: ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None: ...


class _NoRun:
    """Takes the place of a run where none is wanted, and keeps nothing."""

    run_id = ""

    def link_model(self, model_id: str) -> None:
        pass

    def log_results(
        self,
        numbers: Numbers,
        gates: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
        *,
        split: str = "val",
    ) -> None:
        pass

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        pass


def _run_of(job: EvaluationJob, whole: Dataset, evaluated: Dataset) -> AbstractContextManager[_Run]:
    """The open run of an evaluation; one that keeps nothing where the job is not to be tracked."""
    if not job.track:
        return nullcontext(_NoRun())
    return track(
        whole,
        job.data,
        output_dir=job.output,
        run_name=f"evaluate {job.split}",
        params={
            "evaluated.model": job.model,
            "evaluated.split": job.split,
            "evaluated.weights": job.weights,
            **config_params(eval=job.limits),
        },
        tags={"kind": "evaluation", "test_split_evaluated": str(job.split == "test").lower()},
        inputs={job.split: "evaluation"},
        evaluated=evaluated,
        system_metrics=False,
    )


def _opened(
    job: EvaluationJob,
    dataset: Dataset,
    cheap: Mapping[str, Predictor],
    predictor: Predictor | None,
) -> Opened:
    """What is to be evaluated, with its weights stored as the job says."""
    if predictor is None:
        opened = open_predictor(job.model, dataset, cheap)
    else:
        opened = open_object(predictor, job.model, dataset)
    if job.weights == "float32":
        return opened
    if not isinstance(opened.predictor, OCPMambaLVM):
        raise JobError(f"{job.model} has no weights to store as {job.weights}")
    # The tracked model has other weights: these numbers are not its.
    return replace(opened, predictor=quantize(opened.predictor, job.weights), model_id=None)


def _with_declared(
    opened: Opened, job: EvaluationJob, whole: Dataset, trained_on: Dataset | None, log: Log
) -> Opened:
    """The predictor with what the caller says that it learnt from, where it does not say it."""
    if opened.trained_on is None or opened.trained_on.learnt is not None:
        return opened
    if trained_on is None and job.trained_on is not None:
        same, pickles = job.trained_on == job.data, job.allow_pickle
        trained_on = whole if same else open_data(job.trained_on, allow_pickle=pickles, log=log)
    if trained_on is None:
        log(f"WARNING: {opened.trained_on.words}")
        return opened
    name = job.trained_on.name if job.trained_on else "the dataset given"
    return replace(opened, trained_on=declared(trained_on, name))


def _write(run: _Run, report: Report, folder: Path) -> Path:
    """Write an evaluation's files and its gates, and log them; returns the page."""
    verdicts = folder / "gates.json"
    verdicts.write_text(json.dumps(report.gates, indent=1) + "\n", encoding="utf-8")
    files = write_evaluation(report, folder)
    for path in (*files, verdicts):
        run.log_artifact(path, "reports")
    return files[0]


def margin_note(evaluated: Evaluation) -> str:
    """Return the margin beside the context mean's, in words that keep it from misleading."""
    ours, mean = (evaluated.figures[name] for name in (names.MARGIN, names.CONTEXT_MEAN_MARGIN))
    return (
        f"{ours}; the untrained context mean has {mean} on the same examples. Below 0 is no fault "
        "by itself: a good regressor that is unsure stays near its input (docs/metrics.md)"
    )


def _evaluate_all(
    job: EvaluationJob,
    opened: Opened,
    cheap: Mapping[str, Predictor],
    dataset: Dataset,
    encoder: Encoder | None,
    decoder: Decoder | None,
    log: Log,
) -> tuple[Evaluation, dict[str, Evaluation]]:
    """Evaluate the predictor, then the baselines (but the one that it is), with the same index.

    Their strata are the predictor's, so that a column of a table is over the same examples; where
    these are not known, they are those of the dataset's own train split, which baselines learn.
    """
    predictor, known = opened.predictor, opened.trained_on and opened.trained_on.learnt
    index = BankIndex(dataset.bank, job.index)
    log(f"evaluating {job.model} on {dataset.n_examples(job.split):,} sequences of {job.split}")
    evaluated = evaluate(
        predictor,
        dataset,
        job.split,
        name=job.name or short_name(job.model),
        index=index,
        encoder=encoder,
        decoder=decoder,
        trained_on=opened.trained_on,
    )
    baselines = {}
    for name, baseline in cheap.items() if job.against else ():
        if baseline is not predictor:
            log(f"evaluating {BASELINE_PREFIX}{name}")
            baselines[name] = evaluate(
                baseline,
                dataset,
                job.split,
                name=name,
                index=index,
                trained_on=opened.trained_on if known else None,
            )
    return evaluated, baselines


def _open_decoder(
    job: EvaluationJob, dataset: Dataset, log: Log
) -> tuple[Decoder | None, dict[str, str]]:
    """The decoder asked for; or None, and the tag with the reason."""
    reason = "not asked for (--decoder vec2text)"
    if job.decoder and job.encoder is None:
        raise JobError(
            f"--decoder {job.decoder} makes texts that are in no bank: name the encoder that is "
            "to encode them again, --encoder"
        )
    if job.decoder:
        try:
            return Vec2TextDecoder(str(dataset.meta.get("encoder", {}).get("name"))), {}
        except DecoderError as error:
            reason = str(error)
            log(f"WARNING: {job.decoder} not run: {reason}")
    return None, {"vec2text.reason": reason}


@contextmanager
def _mismatch_tracked(run: _Run) -> Iterator[None]:
    """Log a mismatch of encoders as a failed gate, with its numbers, before it ends the run."""
    try:
        yield
    except EncoderMismatchError as error:
        figures = error.parity.figures() if error.parity else {}
        run.log_results(figures, {"no_encoder_mismatch": gates.FAIL})
        raise
