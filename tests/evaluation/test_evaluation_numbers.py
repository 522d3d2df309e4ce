"""Every number of one evaluation, computed once more by plain loops."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from data_maker import make_dataset
from encoder_maker import CountingEncoder

from ocp_mamba.baselines.simple import ContextMean, GlobalMean, Persistence
from ocp_mamba.data.analysis.leakage import strata
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.split import families
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import metrics
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError, Parity, decoded_echo
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.evaluation.exposure import Exposure, TrainedOn
from ocp_mamba.evaluation.predict import predict_examples
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.evaluation.sensitivity import rollout, sensitivity
from ocp_mamba.stats import bootstrap_mean

SEED = 3
METRICS = [
    "next_vec_cosine", "faiss_retrieval_p1", "faiss_retrieval_p5", "faiss_retrieval_p10", "mrr",
    "margin", "context_mean_margin", "echo_loop_similarity", "echo_to_prediction",
    "contrastive_accuracy", "cosine_to_global_mean", "target_cosine_to_global_mean",
]  # fmt: skip


class Leans:
    """Predicts its input, leaning towards a fixed row, so that its numbers are middling."""

    def __init__(self, data: Dataset) -> None:
        self.to = torch.from_numpy(data.bank[1] + 0.5 * data.bank[2])

    def predict_all(self, seq_vectors: torch.Tensor, tmd: Any = None) -> torch.Tensor:
        steps = torch.arange(seq_vectors.shape[1])[:, None] * 0.6
        return torch.nn.functional.normalize(seq_vectors + steps * self.to, dim=-1)


class EncoderOfData(CountingEncoder):
    """Gives the bank's own vectors, and a little noise to single texts."""

    def __init__(self, data: Dataset) -> None:
        super().__init__()
        self.rows = {str(text): row for text, row in zip(data.texts, data.bank, strict=True)}

    def encode(self, texts: Any) -> np.ndarray:
        rows = np.stack([self.rows[str(text)] for text in texts])
        return rows if len(texts) == len(self.rows) else np.roll(rows, 1, axis=1)


@pytest.fixture(scope="module")
def data() -> Dataset:
    """Two of the chains of val are siblings, and so one family."""
    meta = make_dataset().meta | {"sources": ["wordnet", "é/(v2) x"]}
    plain = make_dataset(n_chains=90, n_concepts=25, seed=7, max_length=6, meta=meta)
    mine = plain.chains_in("val")
    one, other = mine[plain.lengths[mine] == 5][:2]
    begin, end = plain.chain_offsets[other] + 1, plain.chain_offsets[other + 1]
    values = plain.chain_values.copy()
    values[begin:end] = plain.chain(one)[1:]
    return replace(plain, chain_values=values)


@pytest.fixture(scope="module")
def found(data: Dataset) -> Evaluation:
    return evaluate(Leans(data), data, "val", name="leans", seed=SEED, diagnostics=False)


@pytest.fixture(scope="module")
def loops(data: Dataset) -> SimpleNamespace:
    """What an evaluation must find, example by example."""
    examples = data.examples("val")
    predictions = predict_examples(Leans(data), data, "val").numpy()
    targets, last = data.bank[examples.target], data.bank[examples.last]
    scores = predictions @ data.bank.T
    order = np.argsort(-scores, axis=1, kind="stable")
    place = (order == examples.target[:, None]).argmax(axis=1) + 1
    mean = GlobalMean(data).mean.numpy()
    untrained = predict_examples(ContextMean(), data, "val").numpy()
    other = data.bank[metrics.other_targets(examples.target, SEED)]
    nearest = data.bank[order[:, 0]]
    per_example = {
        "next_vec_cosine": (predictions * targets).sum(1),
        "faiss_retrieval_p1": place <= 1,
        "faiss_retrieval_p5": place <= 5,
        "faiss_retrieval_p10": place <= 10,
        "mrr": 1 / place,
        "margin": (predictions * targets).sum(1) - (predictions * last).sum(1),
        "context_mean_margin": (untrained * targets).sum(1) - (untrained * last).sum(1),
        "echo_loop_similarity": (nearest * targets).sum(1),
        "echo_to_prediction": (nearest * predictions).sum(1),
        "contrastive_accuracy": (predictions * targets).sum(1) > (predictions * other).sum(1),
        "cosine_to_global_mean": predictions @ mean,
        "target_cosine_to_global_mean": targets @ mean,
    }
    return SimpleNamespace(
        examples=examples, predictions=predictions, order=order, place=place,
        per_example={k: np.asarray(v, float) for k, v in per_example.items()},
        groups=families(data, "val"),
    )  # fmt: skip


def test_what_was_evaluated_is_said(data, found, loops) -> None:
    n = len(loops.examples.target)
    said = (found.predictor, found.split, found.dataset_fingerprint, found.metrics_version)
    assert said == ("leans", "val", data.fingerprint, metrics.METRICS_VERSION)
    chains, groups = len(np.unique(loops.examples.chain)), len(np.unique(loops.groups))
    assert (found.n_examples, found.n_chains, found.n_families) == (n, chains, groups)
    assert groups < chains < n
    assert (found.pool_size, found.chance_p1) == (25, 1 / 25)
    assert (found.index, found.echo_encoder, found.parity) == ("exact", "bank", None)
    assert (found.exposure, found.sample) == (Exposure(), None)
    assert found.causality is None, "a diagnosis"
    np.testing.assert_array_equal(found.chains, loops.examples.chain)
    np.testing.assert_array_equal(found.families, loops.groups)
    np.testing.assert_array_equal(found.found, loops.order[:, :10])
    for name, mask in strata(data, "val").items():
        np.testing.assert_array_equal(found.strata[name], mask)


def test_the_numbers_of_each_example(found, loops) -> None:
    assert sorted(found.per_example) == sorted(["rank", *METRICS])
    np.testing.assert_array_equal(found.per_example["rank"], loops.place)
    for name in METRICS:
        assert loops.per_example[name].std() > 0, f"{name} is the same everywhere"
        np.testing.assert_allclose(found.per_example[name], loops.per_example[name], atol=1e-5)


def test_the_means_of_each_part_with_their_intervals(data, found, loops) -> None:
    examples = loops.examples
    parts = {"": np.ones(len(examples.target), bool)}
    parts |= {f"{name}/": mask for name, mask in strata(data, "val").items()}
    wanted = {prefix + name: (name, mask) for prefix, mask in parts.items() for name in METRICS}
    more = {f"position/k{k}": examples.position == k for k in np.unique(examples.position)}
    sources = data.chain_source[examples.chain]
    more |= {"source/wordnet": sources == 0, "source/é__v2_ x".replace("é", "_"): sources == 1}
    for part, mask in more.items():
        wanted[f"{part}_cosine"] = ("next_vec_cosine", mask)
        wanted[f"{part}_p1"] = ("faiss_retrieval_p1", mask)
    assert set(found.figures) == set(wanted)
    for name, (metric, mask) in wanted.items():
        figure = bootstrap_mean(found.per_example[metric][mask], loops.groups[mask], SEED)
        assert found.figures[name] == figure, name


def test_the_diagnostics_are_by_default_and_change_nothing_else(data, found, loops) -> None:
    whole = evaluate(Leans(data), data, "val", name="leans", seed=SEED)
    assert whole.causality.holds
    assert whole.causality.n > 10
    others = {k for k in whole.figures if k.startswith(("sensitivity/", "rollout/"))}
    assert {k: v for k, v in whole.figures.items() if k not in others} == found.figures
    examples = loops.examples
    predictor, predictions = Leans(data), torch.from_numpy(loops.predictions)
    further = sensitivity(predictor, data, examples, loops.groups, predictions, SEED)
    further |= rollout(predictor, data, examples, loops.groups, predictions, SEED)
    assert {k: whole.figures[k] for k in others} == further
    assert set(further) == others


def test_the_numbers_without_an_interval(found, loops) -> None:
    rows = loops.predictions - loops.predictions.mean(0)
    assert sorted(found.scalars) == [
        "predicted_concepts", "prediction_variance", "target_concepts", "target_variance",
    ]  # fmt: skip
    assert found.scalars["prediction_variance"] == pytest.approx((rows**2).sum(1).mean(), abs=1e-5)
    nearest = len(np.unique(loops.order[:, 0]))
    assert found.scalars["predicted_concepts"] == nearest
    assert found.scalars["target_concepts"] == len(np.unique(loops.examples.target))
    assert nearest != found.scalars["target_concepts"]
    assert 0.5 < found.scalars["target_variance"] < 1


def test_the_seed_draws_the_other_targets_and_the_intervals(data, found) -> None:
    quick: dict[str, Any] = {"name": "leans", "diagnostics": False}
    same = evaluate(Leans(data), data, "val", seed=SEED, **quick)
    assert same.figures == found.figures
    zero, default = (
        evaluate(Leans(data), data, "val", **quick, **seed) for seed in ({"seed": 0}, {})
    )
    assert zero.figures == default.figures != found.figures


def test_a_live_encoder_closes_the_loop_and_is_checked(data, found, loops) -> None:
    """It gives single texts another vector than the bank's, so that it can be told apart."""

    class Shortened:
        name = "short"

        def decode(self, vectors: np.ndarray) -> list[str]:
            return [str(data.texts[i]) for i in (vectors @ data.bank.T).argmax(1)]

    encoder = EncoderOfData(data)
    live = evaluate(
        Leans(data),
        data,
        "val",
        name="it",
        encoder=encoder,
        decoder=Shortened(),
        seed=SEED,
        diagnostics=False,
    )
    assert (live.echo_encoder, live.parity.encoder, live.parity.n) == ("counting", "counting", 25)
    assert isinstance(live.parity, Parity)
    assert live.scalars["encoder_parity_mean"] == live.parity.mean == pytest.approx(1.0)
    assert live.scalars["encoder_parity_lowest"] == live.parity.lowest
    targets = data.bank[loops.examples.target]
    again = np.roll(data.bank[loops.order[:, 0]], 1, axis=1)
    echo = live.per_example["echo_loop_similarity"]
    np.testing.assert_allclose(echo, (again * targets).sum(1), atol=1e-5)
    wanted = decoded_echo(
        Shortened(), encoder, torch.from_numpy(loops.predictions), torch.from_numpy(targets),
        loops.groups, SEED,
    )  # fmt: skip
    assert {k: v for k, v in live.figures.items() if k.startswith("short_")} == wanted
    assert set(live.figures) == set(found.figures) | set(wanted)
    assert set(found.scalars) < set(live.scalars)
    alone = evaluate(Leans(data), data, "val", name="it", decoder=Shortened())
    assert not any(name.startswith("short_") for name in alone.figures)
    with pytest.raises(EncoderMismatchError):
        evaluate(Leans(data), data, "val", name="it", encoder=CountingEncoder())


def test_an_index_that_is_given_is_used(data) -> None:
    index = BankIndex(data.bank[:20])
    with_it = evaluate(Persistence(), data, "val", name="it", index=index)
    assert with_it.pool_size == 20
    assert with_it.found.max() < 20
    assert with_it.chance_p1 == 1 / 20


def test_strata_are_of_what_the_predictor_learnt_from(data) -> None:
    unknown = evaluate(Persistence(), data, "val", name="it", trained_on=TrainedOn("who knows"))
    assert unknown.exposure == Exposure("who knows", known=False, proven=False)
    assert not any(mask.any() for mask in unknown.strata.values())
    assert unknown.figures["seen/next_vec_cosine"].n == 0


def test_an_empty_split_has_no_numbers() -> None:
    empty = make_dataset(n_chains=9, n_concepts=8, split=np.zeros(9, np.uint8))
    found = evaluate(Persistence(), empty, "test", name="it")
    assert (found.split, found.n_examples, found.n_chains, found.n_families) == ("test", 0, 0, 0)
    assert (found.figures, found.per_example, found.scalars, found.causality) == ({}, {}, {}, None)
    assert (found.found.shape, found.families.shape) == ((0, 8), (0,))
    assert (found.found.dtype, found.families.dtype) == (np.int64, np.int64)
    assert evaluate(Persistence(), make_dataset(9, 30), "val", name="").found.shape[1] == 10


def test_without_train_or_other_targets_what_needs_them_is_absent() -> None:
    values = np.tile(np.array([0, 1, 2], np.int32), 4)
    alone = make_dataset(
        n_chains=4, n_concepts=8, chain_values=values, chain_offsets=np.arange(0, 13, 3),
        split=np.ones(4, np.uint8),
    )  # fmt: skip
    found = evaluate(Persistence(), alone, "val", name="it")
    absent = {"contrastive_accuracy", "cosine_to_global_mean", "target_cosine_to_global_mean"}
    assert set(METRICS) - set(found.per_example) == absent


@pytest.mark.parametrize("split", ["val", "test"])
def test_each_epochs_validation_by_loops(data, split: str) -> None:
    examples = data.examples(split)
    predictions = predict_examples(Leans(data), data, split).numpy()
    targets = data.bank[examples.target]
    nearest = (predictions @ data.bank.T).argmax(1)
    spread = [((r - r.mean(0)) ** 2).sum(1).mean() for r in (predictions, targets)]
    validate = validator(data, BankIndex(data.bank), **({} if split == "val" else {"split": split}))
    assert validate(Leans(data)) == {
        "next_vec_cosine": pytest.approx((predictions * targets).sum(1).mean(), abs=1e-5),
        "retrieval_p1": pytest.approx((nearest == examples.target).mean()),
        "variance_ratio": pytest.approx(spread[0] / spread[1], rel=1e-4),
    }


def test_validation_of_nothing_is_refused_and_of_equal_targets_is_not() -> None:
    empty = make_dataset(n_chains=9, n_concepts=8, split=np.zeros(9, np.uint8))
    with pytest.raises(ValueError, match=r"^the test split has no examples to validate on$"):
        validator(empty, BankIndex(empty.bank), "test")
    same = make_dataset(
        n_chains=3, n_concepts=8, chain_values=np.tile(np.array([0, 1, 2], np.int32), 3),
        chain_offsets=np.arange(0, 10, 3), split=np.ones(3, np.uint8),
    )  # fmt: skip
    ratio = validator(same, BankIndex(same.bank))(Persistence())["variance_ratio"]
    assert ratio == pytest.approx(0.0, abs=1e-3)
