"""What a predictor learnt of a split, and whether it sees what comes after a context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from data_maker import make_dataset

from ocp_mamba.baselines.simple import Persistence
from ocp_mamba.data.analysis.leakage import STRATA, strata
from ocp_mamba.data.analysis.learnt import BloomFilter, Learnt, learnt_from
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.split import families
from ocp_mamba.evaluation import sensitivity
from ocp_mamba.evaluation.causality import TOLERANCE, Causality, PrefixPredictions
from ocp_mamba.evaluation.exposure import Exposure, TrainedOn, exposure_of
from ocp_mamba.evaluation.predict import predict_examples


@pytest.fixture(scope="module")
def data() -> Dataset:
    return make_dataset(n_chains=60, n_concepts=40, seed=1)


def test_own_train_split_is_proven_and_its_strata_are_those_of_the_leak_report(data) -> None:
    exposure, masks = exposure_of(data, "test", None)
    assert exposure == Exposure("the train split of this dataset", True, True, None, 0.0, 0)
    assert str(exposure) == "the train split of this dataset"
    assert list(masks) == list(STRATA)
    for name, mask in strata(data, "test").items():
        np.testing.assert_array_equal(masks[name], mask)


def test_what_is_not_known_proves_nothing_and_has_no_strata(data) -> None:
    exposure, masks = exposure_of(data, "val", TrainedOn("nobody knows", None, proven=True))
    assert exposure == Exposure("nobody knows", known=False, proven=False)
    assert exposure.learnt is None
    assert list(masks) == list(STRATA)
    assert all(m.shape == (data.n_examples("val"),) and not m.any() for m in masks.values())
    assert all(m.dtype == bool for m in masks.values())


@pytest.mark.parametrize("proven", [True, False])
def test_what_was_learnt_is_counted_and_parts_the_split(data, proven: bool) -> None:
    """Learnt from this dataset's val split, as if it were its train split."""
    turned = replace(data, split=np.where(data.split == 1, 0, 2).astype(np.uint8))
    exposure, masks = exposure_of(data, "val", TrainedOn("x", learnt_from(turned), proven))
    n = data.n_examples("val")
    assert exposure == Exposure("x", True, proven, learnt=n)
    assert str(exposure) == f"x; it learnt {n:,} of the evaluated sequences"
    assert masks["seen"].all()
    assert not masks["unseen"].any()
    other, masks = exposure_of(data, "test", TrainedOn("x", learnt_from(turned), proven))
    assert other.learnt == 0
    known = np.isin(data.examples("test").target, turned.examples("train", 1).target)
    np.testing.assert_array_equal(masks["unseen_target"], ~known)


def test_a_filter_may_err_as_often_as_its_rate_allows() -> None:
    """About 2 in 100 of some 20,000 errors: the limit is beyond the mean, and not far."""
    data = make_dataset(n_chains=60, n_concepts=40, seed=1, split=np.ones(60, np.uint8))
    crowded = BloomFilter(np.full(8, 0xF0, np.uint8), 1, probes=5)
    assert crowded.error_rate == 1 / 32
    exact = learnt_from(make_dataset(n_chains=9, n_concepts=40, seed=3))
    few = Learnt(exact.transitions, exact.targets, crowded, None)
    exposure, _ = exposure_of(data, "val", TrainedOn("x", few, proven=True))
    n = data.n_examples("val")
    mean, deviation = n / 32, (n / 32) ** 0.5
    assert mean + 2 * deviation < exposure.by_error < mean + 5 * deviation
    assert exposure.error_rate == 1 / 32
    assert str(exposure).endswith("of the evaluated sequences, error rate 0.03")
    targets = Learnt(exact.transitions, crowded, exact.examples, None)
    exposure, _ = exposure_of(data, "val", TrainedOn("x", targets, proven=True))
    assert (exposure.error_rate, exposure.by_error) == (1 / 32, 0), "no error of the examples"


def test_thousands_are_told_apart() -> None:
    assert str(Exposure("x", learnt=1234567)) == "x; it learnt 1,234,567 of the evaluated sequences"


# --- what comes after a context


class Sees:
    """Predicts the mean of what it is given up to a position, and so much of what follows it."""

    def __init__(self, ahead: float = 0.0) -> None:
        self.ahead, self.widths = ahead, []

    def predict_all(self, seq_vectors: torch.Tensor, tmd: Any = None) -> torch.Tensor:
        self.widths.append(seq_vectors.shape[1])
        following = torch.roll(seq_vectors, -1, dims=1)
        following[:, -1] = 0
        return torch.nn.functional.normalize(seq_vectors + self.ahead * following, dim=-1)


def causality_of(predictor: Any, data: Dataset, split: str = "val") -> Causality:
    examples, groups = data.examples(split), families(data, split)
    alone = PrefixPredictions(predictor, data, examples, groups, 0)
    return alone.compare(predict_examples(predictor, data, split))


def test_every_context_that_goes_on_is_compared(data) -> None:
    examples = data.examples("val")
    goes_on = examples.position < data.lengths[examples.chain] - 1
    assert 0 < goes_on.sum() < len(goes_on)
    found = causality_of(Persistence(), data)
    assert found.n == goes_on.sum()
    assert 0.0 <= found.largest < 1e-6
    assert found.holds


@pytest.mark.parametrize("ahead", [0.05, 0.5, -1.0])
def test_the_largest_difference_is_told(data, ahead: float) -> None:
    examples = data.examples("val")
    goes_on = np.flatnonzero(examples.position < data.lengths[examples.chain] - 1)
    last = torch.from_numpy(data.bank[examples.last[goes_on]])
    after = torch.from_numpy(data.bank[examples.target[goes_on]])
    whole = torch.nn.functional.normalize(last + ahead * after, dim=-1)
    wanted = (1 - (whole * last).sum(-1)).max().item()
    found = causality_of(Sees(ahead), data)
    assert found.largest == pytest.approx(wanted, rel=1e-3)
    assert not found.holds


def test_the_order_of_the_passes_and_the_limit(data) -> None:
    """Contexts alone first: a predictor that remembers has seen no whole chain by then."""
    predictor = Sees()
    examples = data.examples("val")
    alone = PrefixPredictions(predictor, data, examples, families(data, "val"), 0)
    longest = int(data.lengths[data.chains_in("val")].max())
    assert max(predictor.widths) < longest - 1
    assert alone.compare(predict_examples(predictor, data, "val")).holds
    assert Causality(5, TOLERANCE).holds
    assert not Causality(5, TOLERANCE * 1.001).holds


def test_where_no_chain_goes_on_nothing_is_compared() -> None:
    data = make_dataset(n_chains=12, n_concepts=20, max_length=3)
    found = causality_of(Sees(1.0), data)
    assert found == Causality(0, 0.0)
    assert found.holds


def test_of_many_contexts_a_sample_is_drawn_by_seed(data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "SAMPLE", 6)
    examples, groups = data.examples("val"), families(data, "val")

    def drawn(seed: int) -> list[int]:
        return PrefixPredictions(Persistence(), data, examples, groups, seed)._rows.tolist()

    assert causality_of(Sees(0.5), data).n == len(drawn(0)) == 6
    assert drawn(0) == drawn(0) != drawn(1)
