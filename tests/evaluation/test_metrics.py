import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ocp_mamba import stats
from ocp_mamba.evaluation import metrics
from ocp_mamba.training import loss


def test_bootstrap_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered, trials = 0, 200
    for trial in range(trials):
        groups = np.repeat(np.arange(60), 5)
        values = rng.normal(size=60)[groups] + 0.1 * rng.normal(size=300)
        figure = stats.bootstrap_mean(values, groups, seed=trial)
        assert figure.low < figure.value < figure.high
        covered += figure.low <= 0 <= figure.high
    assert 0.90 <= covered / trials <= 0.99


def test_bootstrap_by_group_is_wider_than_by_example_when_groups_agree():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 10)
    values = rng.normal(size=40)[groups]
    by_group = stats.bootstrap_mean(values, groups)
    by_example = stats.bootstrap_mean(values, np.arange(400))
    assert by_group.value == pytest.approx(values.mean())
    assert by_group.high - by_group.low > 2 * (by_example.high - by_example.low)


def test_nothing_to_average_is_not_run_and_never_nan():
    figure = stats.bootstrap_mean(np.array([]), np.array([]))
    assert figure == stats.Figure(None, None, None, 0)
    assert str(figure) == "not run (n = 0)"
    assert str(stats.Figure(0.5, 0.25, 0.75, 3)) == "0.500 [0.250, 0.750]"


def test_one_group_alone_has_a_mean_and_no_interval():
    figure = stats.bootstrap_mean(np.array([0.25, 0.75]), np.array([7, 7]))
    assert figure == stats.Figure(0.5, None, None, 2)
    assert str(figure) == "0.500 [no interval]"
    assert stats.Figure(0.5, -0.25, 0.75, 3).text("+.1f") == "+0.5 [-0.2, +0.8]"


def log_sum(predictions: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    return (predictions @ candidates.T / 0.1).logsumexp(-1)


def test_info_nce_is_cross_entropy_over_the_distinct_targets():
    bank = F.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    ids = torch.tensor([3, 1, 3, 0])
    predictions = F.normalize(bank[ids] + 0.1, dim=-1)
    candidates = bank[[0, 1, 3]]
    expected = F.cross_entropy(predictions @ candidates.T / 0.1, torch.tensor([2, 1, 2, 0]))
    losses = loss.info_nce(predictions, bank[ids], log_sum(predictions, candidates), 0.1)
    torch.testing.assert_close(losses.mean(), expected)


def test_a_hard_negative_stands_in_its_own_examples_denominator_once():
    bank = F.normalize(torch.randn(6, 8, generator=torch.Generator().manual_seed(2)), dim=-1)
    ids = torch.tensor([3, 1])
    hard_ids = torch.tensor([[5, 1, -1], [4, 5, 0]])  # 1 is a target of the batch already
    counted = torch.tensor([[True, False, False], [True, True, True]])
    members = F.normalize(torch.stack([bank[ids] + 0.1, bank[ids] - 0.1]), dim=-1)
    candidates = [[3, 1, 5], [1, 3, 4, 5, 0]]  # the target first
    expected = torch.stack([
        torch.stack([
            F.cross_entropy(p @ bank[c].T / 0.1, torch.tensor(0))
            for p, c in zip(predictions, candidates, strict=True)
        ])
        for predictions in members
    ])  # fmt: skip
    sums = log_sum(members, bank[[1, 3]])
    found = loss.info_nce(members, bank[ids], sums, 0.1, bank[hard_ids.clamp_min(0)], counted)
    torch.testing.assert_close(found, expected)


@given(seed=st.integers(0, 500), k=st.integers(1, 6), m=st.integers(1, 8))
def test_hard_negatives_only_raise_the_loss_and_none_leaves_it(seed, k, m):
    generator = torch.Generator().manual_seed(seed)
    bank = F.normalize(torch.randn(20, 8, generator=generator, dtype=torch.float64), dim=-1)
    ids = torch.randint(0, 10, (m,), generator=generator)
    hard = bank[torch.randint(10, 20, (m, k), generator=generator)]
    predictions = F.normalize(torch.randn(m, 8, generator=generator, dtype=torch.float64), dim=-1)
    given = (predictions, bank[ids], log_sum(predictions, bank[ids.unique()]), 0.1)
    plain = loss.info_nce(*given)
    every = torch.ones(m, k, dtype=torch.bool)
    assert (loss.info_nce(*given, hard, every) > plain).all()
    torch.testing.assert_close(loss.info_nce(*given, hard, ~every), plain)


def test_info_nce_of_equal_candidates_is_chance():
    same = F.normalize(torch.ones(5, 8), dim=-1)
    losses = loss.info_nce(same, same, log_sum(same, same), 0.1)
    assert losses.tolist() == pytest.approx([math.log(5)] * 5)


def test_cosine_loss_by_hand():
    a, b = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert loss.cosine_loss(a, b).mean().item() == pytest.approx(0.5)


def test_slope_by_hand():
    assert stats.slope([1.0, 3.0, 5.0]) == pytest.approx(2.0)
    assert stats.slope([4.0, 1.0]) == pytest.approx(-3.0)
    assert stats.slope([4.0]) is None


def test_precision_and_chance_by_hand():
    found, targets = np.array([[1, 2, 3], [4, 5, 6]]), np.array([2, 6])
    assert metrics.precision_at(found, targets, 1).tolist() == [False, False]
    assert metrics.precision_at(found, targets, 2).tolist() == [True, False]
    assert metrics.precision_at(found, targets, 3).tolist() == [True, True]
    assert metrics.chance_precision_at(5, 100) == 0.05
    assert metrics.chance_precision_at(5, 3) == 1.0


def test_percentile_is_in_milliseconds():
    assert stats.percentile_ms([0.001, 0.002, 0.003], 50) == pytest.approx(2.0)
    assert math.isnan(stats.percentile_ms([], 50))


def test_rank_by_hand_counts_ties_against_the_predictor():
    bank = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), dim=-1)
    predictions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])
    targets = torch.tensor([1, 2, 0, 0])
    assert metrics.rank_in_bank(predictions, targets, bank).tolist() == [3, 1, 4, 2]


def test_a_row_within_the_tie_stands_before_the_target_and_no_other() -> None:
    below = np.float32(1) - np.float32(metrics.TIE)
    bank = torch.tensor([[1.0, 0.0], [below, 0.0], [np.nextafter(below, np.float32(0)), 0.0]])
    prediction = torch.tensor([[1.0, 0.0]])
    assert metrics.rank_in_bank(prediction, torch.tensor([0]), bank).tolist() == [2]


def test_cosines_are_those_of_the_last_axis() -> None:
    rows = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    found = metrics.cosine(rows, rows.flip(1))
    assert found.shape == (2, 3)
    expected = F.cosine_similarity(rows[1, 0], rows[1, 2], dim=0)
    assert found[1, 0].item() == pytest.approx(expected.item())


@pytest.mark.parametrize("limit", [{"RANK_ROWS": 7}, {"RANK_SCORES": 160}, {"RANK_SCORES": 1}])
def test_rank_agrees_with_sorting_past_one_block(monkeypatch, limit):
    for name, value in limit.items():
        monkeypatch.setattr(metrics, name, value)
    generator = torch.Generator().manual_seed(0)
    bank = F.normalize(torch.randn(50, 16, generator=generator), dim=-1)
    predictions = F.normalize(torch.randn(30, 16, generator=generator), dim=-1)
    targets = torch.randint(50, (30,), generator=generator)
    order = (predictions @ bank.T).argsort(dim=1, descending=True)
    expected = (order == targets[:, None]).int().argmax(dim=1) + 1
    torch.testing.assert_close(metrics.rank_in_bank(predictions, targets, bank), expected)


def test_margin_by_hand():
    p, t, last = (torch.tensor([row]) for row in ([1.0, 0.0], [0.6, 0.8], [1.0, 0.0]))
    assert metrics.margin(p, t, last).item() == pytest.approx(0.6 - 1.0)
    assert metrics.margin(t, t, last).item() == pytest.approx(1.0 - 0.6)


def test_variance_is_one_less_the_squared_mean_of_unit_rows():
    rows = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    expected = 1 - rows.mean(dim=0).square().sum().item()
    assert metrics.variance(rows) == pytest.approx(expected, abs=1e-6)
    assert metrics.variance(rows[:1].expand(5, 8)) == pytest.approx(0.0, abs=1e-12)
    assert metrics.variance(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx(1.0)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 5))
def test_the_other_target_is_of_another_example_and_never_the_same_concept(ids, seed):
    targets = np.array(ids)
    others = metrics.other_targets(targets, seed)
    if len(set(ids)) == 1:
        assert others is None
    else:
        assert (others != targets).all()
        assert set(others) <= set(ids)


def test_other_targets_are_drawn_as_often_as_they_occur():
    targets = np.array([0] * 1000 + [1] * 3000 + [2] * 1000)
    others = metrics.other_targets(targets, 0)
    of_zero = others[targets == 0]
    assert (of_zero == 1).mean() == pytest.approx(0.75, abs=0.05)
    np.testing.assert_array_equal(others, metrics.other_targets(targets, 0))
