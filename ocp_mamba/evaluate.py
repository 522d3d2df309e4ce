"""One judgement of one predictor on one split, as plain results; no training, no tracker."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ocp_mamba import metrics
from ocp_mamba.baselines import Predictor
from ocp_mamba.conditioning import NextVectorModel, conditions
from ocp_mamba.config import D_VECTOR
from ocp_mamba.data.file import Dataset, Examples
from ocp_mamba.data.leak import STRATA
from ocp_mamba.data.sample import Sample, sample_of
from ocp_mamba.decoders import VEC2TEXT, Decoder
from ocp_mamba.echo import Parity, check_parity, decoded_echo, encode_again
from ocp_mamba.encoders import Encoder
from ocp_mamba.metrics import Figure
from ocp_mamba.probes import rollout, sensitivity
from ocp_mamba.retrieval import BankIndex
from ocp_mamba.yardstick import Yardstick, predict_examples, yardstick

TOP_K = 10
RANK = "rank"
BANK_ECHO = "bank"
WHOLE = "whole"
LATENCY_CONTEXT = 10
LATENCY_WARMUP, LATENCY_RUNS = 20, 200


@dataclass(frozen=True)
class Evaluation:
    """Figures of one predictor on one split, with what they were taken over.

    ``figures`` holds a mean with its interval for each metric, and for each metric and stratum
    under ``<stratum>/<metric>``; MLflow's charts have a section for what stands before the slash.
    ``per_example`` holds the numbers behind them, for paired comparison, and ``rank``, the place of
    the target among all bank rows (1 is best; ties count against the predictor). ``found`` holds
    the bank ids of the nearest rows, ``(n, 10)``, best first. Both are in the order of
    ``dataset.examples(split)``, as are ``chains``, ``families`` (which intervals draw whole) and
    the masks of ``strata``. ``scalars`` holds numbers with no interval. ``sample`` is what was
    judged where the whole dataset, whose fingerprint it bears, was too large: all counts are its.
    """

    predictor: str
    split: str
    dataset_fingerprint: str
    metrics_version: str
    n_examples: int
    n_chains: int
    n_families: int
    pool_size: int
    chance_p1: float
    index: str
    echo_encoder: str
    parity: Parity | None
    figures: dict[str, Figure]
    per_example: dict[str, np.ndarray] = field(repr=False)
    chains: np.ndarray = field(repr=False)
    families: np.ndarray = field(repr=False)
    found: np.ndarray = field(repr=False)
    strata: dict[str, np.ndarray] = field(repr=False)
    scalars: dict[str, float]
    sample: Sample | None = None

    @property
    def sample_fingerprint(self) -> str:
        """What tells two samples of one dataset apart; ``whole`` where it was judged whole."""
        return self.sample.fingerprint if self.sample else WHOLE

    def flat(self) -> dict[str, float]:
        """Return every number by name: each figure, its interval and its number of examples.

        These are ``<name>``, ``interval/<name>_low``, ``interval/<name>_high`` and ``n/<name>``; a
        figure over no examples has its ``n`` of 0 and nothing else.
        """
        numbers: dict[str, float] = {}
        for name, figure in self.figures.items():
            numbers[f"n/{name}"] = figure.n
            if figure.value is not None:
                numbers[name] = figure.value
            if figure.low is not None and figure.high is not None:
                numbers[f"interval/{name}_low"] = figure.low
                numbers[f"interval/{name}_high"] = figure.high
        numbers["retrieval_pool_size"] = self.pool_size
        numbers["retrieval_chance_p1"] = self.chance_p1
        return numbers | self.scalars

    def headline(self) -> dict[str, float | None]:
        """Return the numbers that a runs table should have, None for a figure over no examples.

        These are every figure over all examples, cosine and P@1 of each stratum as
        ``unseen_next_vec_cosine``, and the numbers with no interval. No name has a slash: MLflow
        puts the charts of such names above those of the epochs.
        """
        numbers: dict[str, float | None] = {n: f.value for n, f in self._headline().items()}
        numbers["retrieval_pool_size"] = self.pool_size
        numbers["retrieval_chance_p1"] = self.chance_p1
        return numbers | self.scalars

    def _headline(self) -> dict[str, Figure]:
        by_stratum = {
            f"{stratum}_{metric}": f"{stratum}/{metric}"
            for stratum in self.strata
            for metric in ("next_vec_cosine", "faiss_retrieval_p1")
        }
        return {
            **{name: figure for name, figure in self.figures.items() if "/" not in name},
            **{n: self.figures[key] for n, key in by_stratum.items() if key in self.figures},
        }

    def tags(self) -> dict[str, str]:
        """Return what single numbers cannot say: intervals, definitions, what did not run."""
        intervals = {
            f"interval.{name}": f"{figure.interval('.4f')}, n = {figure.n:,}"
            for name, figure in self._headline().items()
            if figure.value is not None
        }
        decoded = f"{VEC2TEXT}_echo_similarity" in self.figures
        return (
            intervals
            | (self.sample.tags() if self.sample else {})
            | {
                "metrics.version": self.metrics_version,
                "echo_encoder": self.echo_encoder,
                "retrieval.index": self.index,
                "metric.vec2text": "ran" if decoded else "not-run",
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what is worth writing as JSON: all but the numbers of single examples."""
        skipped = ("per_example", "chains", "families", "found", "strata", "figures", "sample")
        plain = {k: v for k, v in vars(self).items() if k not in skipped}
        plain["parity"] = asdict(self.parity) if self.parity else None
        plain["sample_fingerprint"] = self.sample_fingerprint
        plain["sample"] = self.sample.to_dict() if self.sample else None
        return plain | {"figures": {name: asdict(f) for name, f in self.figures.items()}}


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    split: str,
    *,
    name: str,
    index: BankIndex | None = None,
    encoder: Encoder | None = None,
    decoder: Decoder | None = None,
    seed: int = 0,
) -> Evaluation:
    """Judge a predictor on a split, overall and per stratum, with intervals by family.

    Args:
        predictor: a model in evaluation mode, or a baseline.
        dataset: gives the split and the bank that retrieval searches.
        split: "train", "val" or "test".
        name: how results call the predictor.
        index: the bank's index, to share it between predictors; an exact one is built when None.
        encoder: encodes the echo loop's texts again, after `check_parity`; None lets the bank stand
            in for it.
        decoder: closes the echo loop once more in the bank's place; needs the encoder.
        seed: seed of the bootstrap.

    Raises:
        ValueError: the split is unknown, or a prediction is not finite.
        EncoderMismatchError: the encoder does not give the bank's vectors.
    """
    parity = check_parity(encoder, dataset, seed) if encoder else None
    index = index or BankIndex(dataset.bank)
    examples = dataset.examples(split)
    members: dict[str, np.ndarray] = {name: np.zeros(0, bool) for name in STRATA}
    groups = np.zeros(0, np.int64)
    per_example: dict[str, np.ndarray] = {}
    figures: dict[str, Figure] = {}
    scalars: dict[str, float] = {}
    found = np.zeros((0, min(TOP_K, index.size)), np.int64)
    if len(examples.target):
        beside = yardstick(dataset, split)
        members, groups = beside.strata, beside.families
        predictions = predict_examples(predictor, dataset, split)
        _, found = index.search(predictions.numpy(), TOP_K)
        nearest = found[:, 0]
        echo = encode_again(encoder, dataset, nearest) if encoder else dataset.bank[nearest]
        per_example = _judge(predictions, found, torch.from_numpy(echo), beside, dataset, seed)
        figures = _figures(per_example, members, groups, examples, dataset, seed)
        figures |= sensitivity(predictor, dataset, examples, groups, predictions, seed)
        figures |= rollout(predictor, dataset, examples, groups, predictions, seed)
        scalars = {
            "prediction_variance": metrics.variance(predictions),
            "target_variance": beside.target_variance,
        }
        if decoder and encoder:
            targets = _rows(dataset, examples.target)
            figures |= decoded_echo(decoder, encoder, predictions, targets, groups, seed)
        if parity:
            scalars |= parity.figures()
        if index.kind != "exact":
            scalars["faiss_recall_at_1"] = index.recall_at_1(predictions.numpy())
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
    )


def _rows(dataset: Dataset, ids: np.ndarray) -> Tensor:
    return torch.from_numpy(dataset.bank[ids])


def _judge(
    predictions: Tensor,
    found: np.ndarray,
    echo: Tensor,
    beside: Yardstick,
    dataset: Dataset,
    seed: int,
) -> dict[str, np.ndarray]:
    """One number an example for each metric; ``echo`` is the nearest text, encoded again."""
    bank, examples = torch.from_numpy(dataset.bank), beside.examples
    targets, last = _rows(dataset, examples.target), _rows(dataset, examples.last)
    rank = metrics.rank_in_bank(predictions, torch.from_numpy(examples.target).long(), bank).numpy()
    judged = {
        RANK: rank,
        "next_vec_cosine": metrics.cosine(predictions, targets).numpy(),
        "faiss_retrieval_p1": metrics.precision_at(found, examples.target, 1).astype(float),
        "faiss_retrieval_p5": metrics.precision_at(found, examples.target, 5).astype(float),
        "faiss_retrieval_p10": metrics.precision_at(found, examples.target, 10).astype(float),
        "mrr": 1.0 / rank,
        "margin": metrics.margin(predictions, targets, last).numpy(),
        "context_mean_margin": beside.context_mean_margin,
        "echo_loop_similarity": metrics.cosine(echo, targets).numpy(),
        "echo_to_prediction": metrics.cosine(echo, predictions).numpy(),
    }
    others = metrics.other_targets(examples.target, seed)
    if others is not None:
        beaten = metrics.margin(predictions, targets, _rows(dataset, others)) > 0
        judged["contrastive_accuracy"] = beaten.numpy().astype(float)
    if beside.global_mean is not None and beside.target_cosine_to_global_mean is not None:
        mean = beside.global_mean.expand_as(predictions)
        judged["cosine_to_global_mean"] = metrics.cosine(predictions, mean).numpy()
        judged["target_cosine_to_global_mean"] = beside.target_cosine_to_global_mean
    return judged


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
        return metrics.bootstrap_mean(per_example[metric][chosen], groups[chosen], seed)

    figures = {}
    everything = {"": np.ones(len(examples.target), bool)}
    for prefix, chosen in (everything | {f"{name}/": m for name, m in members.items()}).items():
        for metric in per_example:
            if metric != RANK:
                figures[prefix + metric] = over(chosen, metric)
    parts = {f"position/k{k}": examples.position == k for k in np.unique(examples.position)}
    sources = dataset.chain_source[examples.chain]
    for number in np.unique(sources):
        name = re.sub(r"[^\w\-. ]", "_", dataset.meta["sources"][number], flags=re.ASCII)
        parts[f"source/{name}"] = sources == number
    for part, chosen in parts.items():
        for short, metric in {"cosine": "next_vec_cosine", "p1": "faiss_retrieval_p1"}.items():
            figures[f"{part}_{short}"] = over(chosen, metric)
    return figures


def paired_difference(
    ours: Evaluation, theirs: Evaluation, metric: str, stratum: str | None = None
) -> Figure:
    """Mean of ours minus theirs over the same examples, with its interval by family.

    Args:
        ours: a judgement.
        theirs: another one of the same split.
        metric: a key of ``per_example``.
        stratum: a key of ``strata``; None for all examples.

    Raises:
        ValueError: the two were not taken over the same data with the same definitions.
    """
    require_comparable(ours, theirs, metric)
    difference = ours.per_example[metric] - theirs.per_example[metric]
    if stratum is None:
        return metrics.bootstrap_mean(difference, ours.families)
    chosen = ours.strata[stratum]
    return metrics.bootstrap_mean(difference[chosen], ours.families[chosen])


def require_comparable(ours: Evaluation, theirs: Evaluation, metric: str) -> None:
    """Refuse to compare judgements by a metric that was taken over different things.

    Raises:
        ValueError: names what differs.
    """
    same = ["split", "dataset_fingerprint", "sample_fingerprint", "metrics_version"]
    same += ["pool_size", "index"]
    if metric.startswith("echo"):
        same.append("echo_encoder")
    for what in same:
        a, b = getattr(ours, what), getattr(theirs, what)
        if a != b:
            raise ValueError(
                f"{ours.predictor} and {theirs.predictor} differ in {what}: {a} and {b}"
            )


def validator(
    dataset: Dataset, index: BankIndex, split: str = "val"
) -> Callable[[Predictor], dict[str, float]]:
    """Return the judge of each epoch: ``next_vec_cosine`` and ``retrieval_p1`` on a split.

    ``variance_ratio`` is the predictions' variance over the targets': near 0, they are all one.

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
            "next_vec_cosine": float(metrics.cosine(predictions, targets).mean()),
            "retrieval_p1": float((found[:, 0] == examples.target).mean()),
            "variance_ratio": metrics.variance(predictions) / variance,
        }

    return validate


def inference_latency(model: NextVectorModel) -> dict[str, float]:
    """Time the model alone on one context of 10 vectors: p50 and p95 in milliseconds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, LATENCY_CONTEXT, D_VECTOR, generator=generator)
    taken = conditions(model, torch.zeros(1, model.d_tmd), torch.zeros(1, LATENCY_CONTEXT, 2))
    seconds = []
    with torch.inference_mode():
        for _ in range(LATENCY_WARMUP + LATENCY_RUNS):
            started = time.perf_counter()
            model.predict_all(x, **taken)[:, -1]
            seconds.append(time.perf_counter() - started)
    timed = seconds[LATENCY_WARMUP:]
    return {
        "inference_latency_ms": metrics.percentile_ms(timed, 50),
        "inference_latency_ms_p95": metrics.percentile_ms(timed, 95),
    }
