from __future__ import annotations

import numpy as np
import pytest
from data_maker import fields_of
from encoder_maker import CountingEncoder

from ocp_mamba import __version__
from ocp_mamba.data.build.builder import build_dataset
from ocp_mamba.data.build.chains import Chain
from ocp_mamba.data.build.tmd import UNKNOWN, Codes, dense
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError

CODES = Codes(1, 1, 6)


def many_chains(n: int = 60, codes: Codes = CODES) -> list[Chain]:
    return [
        Chain((f"leaf {i}", f"kind {i % 7}", "thing", "entity")[: 3 + i % 2], "wordnet", codes)
        for i in range(n)
    ]


def build(chains, folder, **changed):
    settings = {"seed": 0, "licence": "own", "cache_dir": folder, "progress": False} | changed
    return build_dataset(chains, settings.pop("encoder", CountingEncoder()), **settings)


def test_chains_texts_vectors_and_codes_come_through(tmp_path):
    chains = [*many_chains(), Chain(("root", "branch", "leaf"), "swo")]
    data, report = build(chains, tmp_path)
    for i, chain in enumerate(chains):
        assert tuple(data.texts[data.chain(i)].tolist()) == chain.concepts
        assert data.meta["sources"][data.chain_source[i]] == chain.source
    np.testing.assert_allclose(
        data.bank, CountingEncoder().encode(data.texts.tolist()), atol=1e-3, rtol=0
    )
    assert data.texts.tolist() == sorted({c for chain in chains for c in chain.concepts})
    np.testing.assert_array_equal(data.chain_tmd[:60], dense(np.array([CODES] * 60)))
    assert not data.chain_tmd[60].any()
    assert data.chain_first.tolist() == [2] * 61
    assert report.concepts == data.n_concepts
    assert report.sequences == {s: data.n_examples(s) for s in ("train", "val", "test")}
    assert report.zero_tmd == pytest.approx(1 / 61)
    assert report.fingerprint == data.fingerprint


def test_meta_says_where_it_comes_from(tmp_path):
    data, _ = build(many_chains(), tmp_path, seed=7, licence="CC0")
    assert data.meta == {
        "schema_version": 1,
        "builder_version": __version__,
        "encoder": {"name": "counting", "weight_hash": "1" * 64},
        "sources": ["wordnet"],
        "licence": "CC0",
        "seed": 7,
        "counts": {
            "concepts": data.n_concepts,
            "chains": 60,
            "sequences": {s: data.n_examples(s) for s in ("train", "val", "test")},
        },
    }


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_what_is_built_is_what_is_loaded(tmp_path, dtype):
    data, _ = build(many_chains(), tmp_path / "cache", dtype=dtype)
    data.save(tmp_path / "d.npz")
    loaded = Dataset.load(tmp_path / "d.npz")
    assert loaded.fingerprint == data.fingerprint
    for name, value in fields_of(data).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)


def test_same_inputs_same_fingerprint_and_the_seed_moves_the_split(tmp_path):
    first, _ = build(many_chains(), tmp_path / "a")
    again, _ = build(many_chains(), tmp_path / "b")
    cached, _ = build(many_chains(), tmp_path / "a")
    other, _ = build(many_chains(), tmp_path / "a", seed=1)
    assert first.fingerprint == again.fingerprint == cached.fingerprint != other.fingerprint
    assert (first.split != other.split).any()


def test_what_is_left_out_is_reported(tmp_path):
    chains = [*many_chains(), many_chains()[0], Chain(("a", "b"), "swo")]
    data, report = build(chains, tmp_path)
    assert data.n_chains == 60
    assert data.meta["sources"] == ["wordnet"]
    assert (report.clean.duplicates, report.clean.short) == (1, 1)
    assert "60 of 62 chains kept; dropped: 1 duplicates, 1 shorter than 3" in report.to_markdown()
    assert report.warnings == []


def test_warnings_for_missing_codes_duplicates_and_small_splits(tmp_path):
    rooted = [Chain(("root", "branch", "twig", f"leaf {i}"), "swo") for i in range(40)]
    chains = [*many_chains(20), Chain(("LEAF 1", "kind 9", "entity"), "wordnet"), *rooted]
    data, report = build(chains, tmp_path)
    text = report.to_markdown()
    assert report.duplicates == ("leaf 1",)
    assert "Warning: 1 concepts have the vector of another one, such as 'leaf 1'" in text
    assert f"Warning: {41 / 61:.1%} of the chains have no TMD codes" in text
    assert "Warning: source swo: val got 0 of 6 wanted" in text
    assert (data.split[21:] == 0).all()


def test_without_any_codes_there_is_no_tmd(tmp_path):
    data, report = build(many_chains(codes=UNKNOWN), tmp_path)
    assert data.chain_tmd is None
    assert report.zero_tmd == 1


def test_nothing_to_build_from(tmp_path):
    with pytest.raises(DatasetError, match="no chains to build from: 0 of 1 chains kept"):
        build([Chain(("a", "b"), "s")], tmp_path)
    with pytest.raises(DatasetError, match="300 sources found in the chains, at most 255"):
        build([Chain(("a", "b", f"c{i}"), f"s{i}") for i in range(300)], tmp_path)


def test_a_killed_build_loses_no_shard(tmp_path):
    chains = [Chain((f"leaf {i}", f"kind {i}", "entity"), "s") for i in range(400)]
    with pytest.raises(KeyboardInterrupt):
        build(chains, tmp_path, encoder=CountingEncoder(fail_after=512))
    encoder = CountingEncoder()
    data, _ = build(chains, tmp_path, encoder=encoder)
    assert encoder.encoded == data.n_concepts - 512
    assert data.fingerprint == build(chains, tmp_path / "fresh")[0].fingerprint
