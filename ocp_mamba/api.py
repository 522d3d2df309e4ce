"""`evaluate` and `train` for a script or a notebook: the jobs of the command line, as functions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.config import ModelConfig, TrainConfig, model_config, override
from ocp_mamba.data.analysis.sample import EvalLimits
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import ConfigError
from ocp_mamba.jobs.common import Log, open_data
from ocp_mamba.jobs.evaluate import EvaluationJob, EvaluationOutcome, evaluate_on
from ocp_mamba.jobs.train import TrainJob, TrainOutcome, run_training
from ocp_mamba.jobs.train_job import SAVE_MINUTES
from ocp_mamba.presets import BASE
from ocp_mamba.presets import preset as preset_named
from ocp_mamba.tracking.registry.aliases import MODEL_NAME
from ocp_mamba.tracking.session import EXPERIMENT

IN_MEMORY = Path("dataset")
"""The name in MLflow of a dataset that was given as an object."""

MODEL_SETTINGS = frozenset(f.name for f in fields(ModelConfig)) - {"relations"}
"""Settings of `train`; which relations there are, the dataset says."""
TRAIN_SETTINGS = frozenset(f.name for f in fields(TrainConfig))


def evaluate(
    predictor: Predictor | str | Path,
    dataset: Dataset | str | Path,
    *,
    split: str = "val",
    name: str | None = None,
    output: str | Path = "outputs/evaluation",
    against: bool = True,
    encoder: str | None = None,
    index: str = "auto",
    trained_on: Dataset | str | Path | None = None,
    limits: EvalLimits | None = None,
    track: bool = True,
    log: Log = print,
) -> EvaluationOutcome:
    """Evaluate a predictor on a split, beside the cheap baselines, and track the evaluation.

    The store is ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the working folder.

    Args:
        predictor: any object with ``predict_all(seq_vectors, tmd=None)`` that takes and gives a
            float32 ``torch.Tensor (B, L, 768)``: row t is a unit row, predicts the vector of
            position t + 1 and sees positions <= t alone. Sequences are padded by zeros on the
            right. ``tmd (B, 16)`` is given where the object has an attribute ``d_tmd`` above 0. Or
            any object with ``predict(contexts)``, which takes B contexts of one length,
            ``(B, L, 768)``, and gives what follows each, unit rows ``(B, 768)``. Or
            what ``ocp-mamba evaluate --model`` takes: the path of a ``.pt``, ``models:/…``,
            ``runs:/…`` or ``baseline:NAME``.
        dataset: an open dataset, or the path of one.
        split: "train", "val" or "test".
        name: what it is called in tables and in the report; None for the name of an object's class,
            or of the file.
        output: folder of ``report.html``, ``evaluation.json``, ``per_example.npz``, ``gates.json``.
        against: evaluate the cheap baselines too; gates that compare are ``not-run`` without them.
        encoder: name or folder of the encoder that encodes the echo loop's texts again; the bank's
            own vectors stand in for None.
        index: of the bank: "auto", "exact", "ivf" or "hnsw".
        trained_on: the dataset whose train split the predictor learnt from, open or as a path; for
            a predictor that does not say it itself, as an object and an older ``.pt`` do not. It
            makes the strata ``seen`` and ``unseen``, which are ``not-run`` without it. The gates
            ``no_leak`` and ``unseen_beats_ridge`` stay ``not-run``: this proves nothing.
        limits: up to what size data are evaluated whole; None for the defaults.
        track: log an MLflow run.
        log: takes what a person should read.

    Raises:
        DatasetError: the file is no dataset, or the split has no examples.
        JobError: the predictor cannot be evaluated, or an answer of it is no float32 unit rows of
            the input's shape; the message names the predictor and what is wanted.
        EncoderError, EncoderMismatchError: the encoder cannot be loaded, or is not the bank's.
        TrackingError: the store cannot be used.
    """
    given = None if isinstance(predictor, str | Path) else predictor
    job = EvaluationJob(
        model=str(predictor) if given is None else name or type(given).__name__,
        name=name,
        data=IN_MEMORY if isinstance(dataset, Dataset) else Path(dataset),
        split=split,
        output=Path(output),
        encoder=encoder,
        index=index,
        trained_on=None
        if trained_on is None or isinstance(trained_on, Dataset)
        else Path(trained_on),
        against=against,
        limits=limits or EvalLimits(),
        track=track,
    )
    whole = (
        dataset
        if isinstance(dataset, Dataset)
        else open_data(job.data, allow_pickle=False, log=log)
    )
    with _evaluation_mode(given):
        said = trained_on if isinstance(trained_on, Dataset) else None
        return evaluate_on(whole, job, log, given, said)


@contextmanager
def _evaluation_mode(predictor: object) -> Iterator[None]:
    """A module's dropout and the like are off meanwhile; anything else stays as it is."""
    was_training = isinstance(predictor, torch.nn.Module) and predictor.training
    if isinstance(predictor, torch.nn.Module):
        predictor.eval()
    try:
        yield
    finally:
        if isinstance(predictor, torch.nn.Module):
            predictor.train(was_training)


def train(
    data: str | Path,
    *,
    output: str | Path = "outputs/model.pt",
    preset: str = BASE,
    model_size: str = "small",
    relations: bool | None = None,
    baselines: str = "cheap",
    device: str = "auto",
    experiment: str = EXPERIMENT,
    run_name: str | None = None,
    model_name: str = MODEL_NAME,
    alias_anyway: bool = False,
    limits: EvalLimits | None = None,
    resume: bool = False,
    save_minutes: float = SAVE_MINUTES,
    progress: bool = True,
    log: Log = print,
    **settings: Any,
) -> TrainOutcome:
    """Train a model, evaluate it on val, track it in MLflow and register it, as `ocp-mamba train`.

    The best epoch is in ``output``: `load_model` reads it.

    Args:
        data: path of a dataset file, of a folder of shards, or of an older npz.
        output: the ``.pt`` to write at the end; all else is in the run's folder beside it.
        preset: a named variant, see `presets.PRESETS`.
        model_size: "tiny", "small" or "base".
        relations: the model knows the dataset's relations; None for what the preset says.
        baselines: "cheap", or "full" to train a GRU and a Transformer of the model's size too.
        device: "auto", "cpu" or "cuda".
        experiment: of the MLflow run.
        run_name: of the MLflow run; MLflow invents one for None.
        model_name: the registered model that gets a new version.
        alias_anyway: move the alias ``candidate`` to it whatever its gates say.
        limits: up to what size data are evaluated whole; None for the defaults.
        resume: go on with an interrupted training of this output; start one if none is left.
        save_minutes: most minutes of training that a kill may cost; 0: up to an epoch.
        progress: show a progress bar.
        log: takes what a person should read.
        settings: fields of `ModelConfig` and `TrainConfig`, such as ``n_layers=12`` or
            ``max_epochs=3``; they win over the preset.

    Raises:
        ConfigError: a setting is unknown or out of range.
        DatasetError, TrainingError, TrackingError, RegistryError: see `errors`.
    """
    if isinstance(data, Dataset):
        raise ConfigError(
            "train takes the path of a dataset, not an open one; dataset.save(path) writes it"
        )
    unknown = sorted(set(settings) - MODEL_SETTINGS - TRAIN_SETTINGS)
    if unknown:
        raise ConfigError(
            f"unknown settings: {', '.join(unknown)}. A model has "
            f"{', '.join(sorted(MODEL_SETTINGS))}; a training has "
            f"{', '.join(sorted(TRAIN_SETTINGS))}"
        )
    variant = preset_named(preset)
    model = {k: v for k, v in settings.items() if k in MODEL_SETTINGS}
    training = {k: v for k, v in settings.items() if k in TRAIN_SETTINGS}
    job = TrainJob(
        data=Path(data),
        output=Path(output),
        model=model_config(model_size, **{**variant.model, **model}),
        train=override(TrainConfig(), **{**variant.train, **training}),
        relations=variant.relations if relations is None else relations,
        device=device,
        baselines=baselines,
        experiment=experiment,
        run_name=run_name,
        model_name=model_name,
        alias_anyway=alias_anyway,
        limits=limits or EvalLimits(),
        resume=resume,
        save_minutes=save_minutes,
        progress=progress,
    )
    return run_training(job, log)
