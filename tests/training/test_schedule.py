"""What is learnt when: the curriculum's chains and the learning rate's steps."""

import numpy as np
import pytest
from data_maker import make_dataset
from hypothesis import given
from hypothesis import strategies as st

from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.training.schedule import learning_rate, longest_chains, make_plan, mixup_of


def test_by_hand_each_growing_epoch_adds_as_many_chains():
    lengths = np.array([3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert longest_chains(lengths, epochs=4, curriculum=0.5) == (5, 8, None, None)
    assert longest_chains(lengths, epochs=4, curriculum=0.0) == (None,) * 4
    assert longest_chains(lengths, epochs=1, curriculum=0.9) == (None,), "the last learns all"


@given(
    lengths=st.lists(st.integers(3, 15), min_size=1, max_size=60),
    epochs=st.integers(1, 12),
    curriculum=st.floats(0, 0.99),
)
def test_the_longest_chain_never_shrinks_and_the_last_epoch_has_no_limit(
    lengths, epochs, curriculum
):
    found = longest_chains(np.array(lengths), epochs, curriculum)
    assert len(found) == epochs
    assert found[-1] is None
    grown = [n for n in found if n is not None]
    assert found[: len(grown)] == tuple(grown), "no limit after a limit is lifted"
    assert grown == sorted(grown)
    assert all(n in lengths for n in grown), "each growing epoch has chains"


@pytest.mark.parametrize("curriculum", [0.0, 0.6])
def test_the_plan_counts_the_very_batches_that_are_drawn(curriculum):
    data = make_dataset(n_chains=200, seed=5)
    config = TrainConfig(batch_size=16, max_epochs=5, curriculum=curriculum)
    plan = make_plan(data, config)
    drawn = [
        list(batches(data, "train", 16, shuffle_seed=e, longest=n))
        for e, n in enumerate(plan.longest)
    ]
    assert [len(found) for found in drawn] == list(plan.steps)
    for found, longest in zip(drawn, plan.longest, strict=True):
        longest_found = max(int(batch.lengths.max()) + 1 for batch in found)
        assert longest_found <= (longest or 9)
    chains = [sum(len(b.chain_ids) for b in found) for found in drawn]
    assert chains == sorted(chains)
    assert chains[-1] == len(data.chains_in("train"))
    assert (chains[0] < chains[-1]) == (curriculum > 0)


def test_the_rate_warms_up_then_falls_to_its_floor():
    config = TrainConfig(lr=1.0, warmup_fraction=0.1, min_lr_fraction=0.05)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_the_last_epochs_learn_chains_as_they_are():
    config = TrainConfig(max_epochs=6, mixup=0.4, mixup_share=0.7)
    assert [mixup_of(epoch, config) for epoch in range(1, 7)] == [0.4] * 4 + [0.0] * 2
    always = TrainConfig(max_epochs=2, mixup_share=1.0)
    assert mixup_of(2, always) == always.mixup
    assert mixup_of(1, TrainConfig(mixup_share=0.0)) == 0.0
