"""The evaluation of one predictor on one split; it knows no training and no tracker."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ocp_mamba import stats
from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.data.analysis.sample import sample_of
from ocp_mamba.data.dataset import Dataset, Examples
from ocp_mamba.embeddings.decoders import Decoder
from ocp_mamba.embeddings.encoders import Encoder
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import metrics, names
from ocp_mamba.evaluation.causality import Causality, PrefixPredictions
from ocp_mamba.evaluation.echo_loop import check_parity, decoded_echo, encode_again
from ocp_mamba.evaluation.exposure import TrainedOn, exposure_of
from ocp_mamba.evaluation.predict import predict_examples
from ocp_mamba.evaluation.reference import SplitReference, split_reference
from ocp_mamba.evaluation.result import BANK_ECHO, Evaluation
from ocp_mamba.evaluation.sensitivity import rollout, sensitivity
from ocp_mamba.stats import Figure

TOP_K = 10


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    *,
    name: str,
    index: BankIndex | None = None,
    encoder: Encoder | None = None,
    decoder: Decoder | None = None,
    trained_on: TrainedOn | None = None,
    seed: int = 0,
    diagnostics: bool = True,
) -> Evaluation:
    """Evaluate a predictor on a split, overall and per stratum, with intervals by family.

    Args:
        predictor: a model in evaluation mode, or a baseline.
        dataset: gives the split and the bank that retrieval searches.
        split: "train", "val" or "test".
        name: of the predictor in the results.
        index: the bank's index, to share it between predictors; an exact one is built when None.
        encoder: encodes the echo loop's texts again, after `check_parity`; None takes the bank's
            own vectors of them.
        decoder: closes the echo loop once more, by decoding predictions; needs the encoder.
        trained_on: what the predictor learnt from, by which strata are made; None for the train
            split of ``dataset``.
        seed: seed of the bootstrap.
        diagnostics: also predict from changed contexts, over several steps, and by prefixes, which
            takes most of the time; without it, the gates about them are not-run.

    Raises:
        ValueError: the split is unknown, or a prediction is not finite.
        EncoderMismatchError: the encoder does not give the bank's vectors.
    """
    parity = check_parity(encoder, dataset, seed) if encoder else None
    index = index or BankIndex(dataset.bank)
    examples = dataset.examples(split)
    exposure, members = exposure_of(dataset, split, trained_on)
    causality: Causality | None = None
    groups = np.zeros(0, np.int64)
    per_example: dict[str, np.ndarray] = {}
    figures: dict[str, Figure] = {}
    scalars: dict[str, float] = {}
    found = np.zeros((0, min(TOP_K, index.size)), np.int64)
    if len(examples.target):
        reference = split_reference(dataset, split)
        groups = reference.families
        prefixes = (
            PrefixPredictions(predictor, dataset, examples, groups, seed) if diagnostics else None
        )
        predictions = predict_examples(predictor, dataset, split)
        causality = prefixes.compare(predictions) if prefixes else None
        _, found = index.search(predictions.numpy(), TOP_K)
        nearest = found[:, 0]
        echo = encode_again(encoder, dataset, nearest) if encoder else dataset.bank[nearest]
        per_example = _per_example(
            predictions, found, torch.from_numpy(echo), reference, dataset, seed
        )
        figures = _figures(per_example, members, groups, examples, dataset, seed)
        if diagnostics:
            figures |= sensitivity(predictor, dataset, examples, groups, predictions, seed)
            figures |= rollout(predictor, dataset, examples, groups, predictions, seed)
        scalars = {
            "prediction_variance": metrics.variance(predictions),
            "target_variance": reference.target_variance,
            "predicted_concepts": float(len(np.unique(nearest))),
            "target_concepts": float(len(np.unique(examples.target))),
        }
        if decoder and encoder:
            targets = _rows(dataset, examples.target)
            figures |= decoded_echo(decoder, encoder, predictions, targets, groups, seed)
        if parity:
            scalars |= parity.figures()
        if index.kind != "exact":
            scalars[names.RECALL] = index.recall_at_1(predictions.numpy())
    sample = sample_of(dataset)
    return Evaluation(
        predictor=name,
        split=split,
        dataset_fingerprint=sample.of if sample else dataset.fingerprint,
        metrics_version=metrics.METRICS_VERSION,
        n_examples=len(examples.target),
        n_chains=len(np.unique(examples.chain)),
        n_families=len(np.unique(groups)),
        pool_size=index.size,
        chance_p1=metrics.chance_precision_at(1, index.size),
        index=index.kind,
        echo_encoder=encoder.name if encoder else BANK_ECHO,
        parity=parity,
        figures=figures,
        per_example=per_example,
        chains=examples.chain,
        families=groups,
        found=found,
        strata=members,
        scalars=scalars,
        sample=sample,
        exposure=exposure,
        causality=causality,
    )


def _rows(dataset: Dataset, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(dataset.bank[ids])


def _per_example(
    predictions: Tensor,
    found: np.ndarray,
    echo: Tensor,
    reference: SplitReference,
    dataset: Dataset,
    seed: int,
) -> dict[str, np.ndarray]:
    """One number for each example and metric; ``echo`` is the nearest text, encoded again."""
    bank, examples = torch.from_numpy(dataset.bank), reference.examples
    targets, last = _rows(dataset, examples.target), _rows(dataset, examples.last)
    rank = metrics.rank_in_bank(predictions, torch.from_numpy(examples.target).long(), bank).numpy()
    values = {
        names.RANK: rank,
        names.COSINE: metrics.cosine(predictions, targets).numpy(),
        names.P1: metrics.precision_at(found, examples.target, 1).astype(float),
        names.P5: metrics.precision_at(found, examples.target, 5).astype(float),
        names.P10: metrics.precision_at(found, examples.target, 10).astype(float),
        names.MRR: 1.0 / rank,
        names.MARGIN: metrics.margin(predictions, targets, last).numpy(),
        names.CONTEXT_MEAN_MARGIN: reference.context_mean_margin,
        names.ECHO: metrics.cosine(echo, targets).numpy(),
        "echo_to_prediction": metrics.cosine(echo, predictions).numpy(),
    }
    others = metrics.other_targets(examples.target, seed)
    if others is not None:
        nearer = metrics.margin(predictions, targets, _rows(dataset, others)) > 0
        values["contrastive_accuracy"] = nearer.numpy().astype(float)
    if reference.global_mean is not None and reference.target_cosine_to_global_mean is not None:
        mean = reference.global_mean.expand_as(predictions)
        values["cosine_to_global_mean"] = metrics.cosine(predictions, mean).numpy()
        values["target_cosine_to_global_mean"] = reference.target_cosine_to_global_mean
    return values


def _figures(
    per_example: dict[str, np.ndarray],
    members: dict[str, np.ndarray],
    groups: np.ndarray,
    examples: Examples,
    dataset: Dataset,
    seed: int,
) -> dict[str, Figure]:
    """Every metric, overall and per stratum; cosine and P@1 per position and per source too."""

    def over(chosen: np.ndarray, metric: str) -> Figure:
        return stats.bootstrap_mean(per_example[metric][chosen], groups[chosen], seed)

    figures = {}
    everything = {"": np.ones(len(examples.target), bool)}
    for prefix, chosen in (everything | {f"{name}/": m for name, m in members.items()}).items():
        for metric in per_example:
            if metric != names.RANK:
                figures[prefix + metric] = over(chosen, metric)
    parts = {f"position/k{k}": examples.position == k for k in np.unique(examples.position)}
    sources = dataset.chain_source[examples.chain]
    for number in np.unique(sources):
        name = re.sub(r"[^\w\-. ]", "_", dataset.meta["sources"][number], flags=re.ASCII)
        parts[f"source/{name}"] = sources == number
    for part, chosen in parts.items():
        figures[f"{part}_cosine"] = over(chosen, names.COSINE)
        figures[f"{part}_p1"] = over(chosen, names.P1)
    return figures


def validator(
    dataset: Dataset, index: BankIndex, split: str = "val"
) -> Callable[[Predictor], dict[str, float]]:
    """Return what validates each epoch: ``next_vec_cosine`` and ``retrieval_p1`` on a split.

    ``variance_ratio`` is the variance of the predictions over that of the targets: near 0 all
    predictions are the same.

    Raises:
        ValueError: the split has no examples.
    """
    examples = dataset.examples(split)
    if len(examples.target) == 0:
        raise ValueError(f"the {split} split has no examples to validate on")
    targets = torch.from_numpy(dataset.bank[examples.target])
    variance = max(metrics.variance(targets), torch.finfo(targets.dtype).eps)

    def validate(model: Predictor) -> dict[str, float]:
        predictions = predict_examples(model, dataset, split)
        _, found = index.search(predictions.numpy(), 1)
        return {
            names.COSINE: float(metrics.cosine(predictions, targets).mean()),
            names.VAL_P1: float((found[:, 0] == examples.target).mean()),
            "variance_ratio": metrics.variance(predictions) / variance,
        }

    return validate
