"""The dataset that the project ships, as it lies in the repository."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ocp_mamba.data.analysis.leakage import check
from ocp_mamba.data.build.chains import Chain, clean_chains
from ocp_mamba.data.build.tmd import dense
from ocp_mamba.data.build.wordnet import LICENCE, wordnet_chains
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.split import chain_groups, split_chains

WORDNET = Path("/usr/share/wordnet")
PATH = Path(__file__).resolve().parents[2] / "ocp_training_9k.npz"
FINGERPRINT = "d079f1915c42e4676e5ca01ce214ca47a9b0d474a9e77e0cd823bd2c9a5c8f1f"


@pytest.fixture(scope="module")
def data():
    return Dataset.load(PATH)


def test_it_is_the_one_documented(data):
    assert data.fingerprint == FINGERPRINT
    page = (PATH.parent / "docs" / "dataset.md").read_text(encoding="utf-8")
    for fact in (FINGERPRINT, f"{data.n_concepts:,}", f"{data.n_chains:,}"):
        assert fact in page
    assert all(f"{data.n_examples(s):,}" in page for s in ("train", "val", "test"))


def test_size_and_counts(data):
    assert PATH.stat().st_size < 20e6
    assert 8_500 <= data.n_concepts <= 9_500
    sequences = sum(data.n_examples(s) for s in ("train", "val", "test"))
    assert 45_000 <= sequences <= 45_100
    assert (data.lengths.min(), data.lengths.max()) == (3, 15)


def test_origin_is_told_without_a_machine_path(data):
    assert data.meta["licence"] == LICENCE
    assert data.meta["sources"] == ["wordnet"]
    assert data.meta["encoder"]["name"] == "sentence-transformers/all-mpnet-base-v2"
    assert all("/" not in str(v) for k, v in data.meta.items() if k != "encoder")
    notice = (PATH.parent / "NOTICE").read_text(encoding="utf-8")
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in notice
    assert PATH.name in notice
    assert data.meta["counts"]["chains"] == data.n_chains
    assert json.dumps(data.meta)


def test_chains_climb_to_a_root_and_are_clean(data):
    texts = [tuple(data.texts[data.chain(i)].tolist()) for i in range(data.n_chains)]
    kept, _ = clean_chains(Chain(t, "wordnet") for t in texts)
    assert len(kept) == data.n_chains
    nouns = sum(t[-1] == "entity" for t in texts)
    assert 0.8 < nouns / data.n_chains < 0.95
    assert np.bincount(data.chain_values, minlength=data.n_concepts).min() >= 1


@pytest.mark.parametrize("min_context", [None, 1, 2])
def test_no_training_learns_an_example_of_val_or_test(data, min_context):
    report = check(data, min_context=min_context)
    assert report.pairs == dict.fromkeys(
        [("train", "val"), ("train", "test"), ("val", "test")], (0, 0.0)
    )
    assert not report.leaks


def test_no_example_and_no_siblings_straddle_splits(data):
    groups = chain_groups(data.chain_values, data.chain_offsets, join_siblings=True)
    pairs = {(g, s) for g, s in zip(groups.tolist(), data.split.tolist(), strict=True)}
    assert len(pairs) == len(set(groups.tolist()))
    again = split_chains(
        data.chain_values,
        data.chain_offsets,
        data.chain_source,
        seed=data.meta["seed"],
        join_siblings=True,
    )
    np.testing.assert_array_equal(again, data.split)
    np.testing.assert_allclose(
        np.bincount(data.split) / data.n_chains, [0.70, 0.15, 0.15], atol=0.005
    )


def test_validation_has_transitions_that_training_lacks(data):
    train, val = data.examples("train"), data.examples("val")
    known = set(zip(train.last.tolist(), train.target.tolist(), strict=True))
    unseen = sum(p not in known for p in zip(val.last.tolist(), val.target.tolist(), strict=True))
    assert unseen > 1_000


def test_every_chain_has_tmd_codes(data):
    np.testing.assert_allclose(np.linalg.norm(data.chain_tmd, axis=1), 1, atol=1e-5)
    assert len(np.unique(data.chain_tmd, axis=0)) > 50


@pytest.mark.skipif(
    not WORDNET.is_dir(), reason=f"not run: no WordNet at {WORDNET} (Debian: wordnet-base)"
)
def test_the_builder_still_draws_its_chains(data):
    drawn, _ = wordnet_chains(WORDNET, sequences=45_000, siblings=5, seed=0)
    shipped = [tuple(data.texts[data.chain(i)].tolist()) for i in range(data.n_chains)]
    assert [chain.concepts for chain in drawn] == shipped
    codes = dense(np.array([chain.codes for chain in drawn]))
    np.testing.assert_allclose(codes, data.chain_tmd, atol=1e-6)  # products round by machine
    assert not any(chain.relations for chain in drawn)
