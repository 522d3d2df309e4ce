"""A dataset that is learnt in a second, and its validation."""

from __future__ import annotations

import pytest
from data_maker import make_dataset

from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator


@pytest.fixture(scope="module")
def data():
    return make_dataset(n_chains=120, n_concepts=40, seed=2)


@pytest.fixture(scope="module")
def validate(data):
    return validator(data, BankIndex(data.bank))
