from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
from data_maker import fields_of, make_dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocp_mamba.data.dataset import Dataset, is_dataset_file, to_float16, unit_rows
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.npz import npz_keys
from ocp_mamba.errors import DatasetError


def raw_arrays(path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=True) as npz:
        return dict(npz)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "d.npz"
    make_dataset().save(path)
    return path


def rewrite(path, remove=(), **changed) -> None:
    arrays = {k: v for k, v in raw_arrays(path).items() if k not in remove}
    np.savez(path, **(arrays | changed))


# --- round trips and the fingerprint


@given(
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(["float16", "float32"]),
    tmd=st.booleans(),
    first=st.sampled_from([1, 2]),
)
@settings(max_examples=25, deadline=None)
def test_save_load_save_keeps_content_and_fingerprint(tmp_path_factory, seed, dtype, tmd, first):
    folder = tmp_path_factory.mktemp("round")
    chain_first = np.full(12, first, dtype=np.uint8)
    data = make_dataset(12, 9, seed, tmd=tmd, bank_dtype=dtype, chain_first=chain_first)
    data.save(folder / "a.npz")
    once = Dataset.load(folder / "a.npz")
    once.save(folder / "b.npz")
    twice = Dataset.load(folder / "b.npz")
    assert data.fingerprint == once.fingerprint == twice.fingerprint
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()
    assert once.bank_dtype == dtype
    np.testing.assert_array_equal(once.bank, twice.bank)
    np.testing.assert_allclose(np.linalg.norm(once.bank, axis=1), 1, atol=2e-6)
    np.testing.assert_allclose(once.bank, data.bank, atol=1e-3 if dtype == "float16" else 1e-7)
    for name in ("texts", "chain_values", "chain_offsets", "chain_source", "split", "chain_first"):
        np.testing.assert_array_equal(getattr(once, name), getattr(data, name))
    assert (once.chain_tmd is None) is not tmd
    assert once.meta == data.meta


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=50, deadline=None)
def test_float16_rounding_is_stable_even_for_sparse_rows(seed, nonzero):
    """Sparse rows have the largest rounding error of the norm."""
    rng = np.random.default_rng(seed)
    rows = np.zeros((20, 768), dtype=np.float32)
    rows[:, :nonzero] = rng.standard_normal((20, nonzero)) + 0.01
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    stored = to_float16(rows)
    np.testing.assert_array_equal(to_float16(unit_rows(stored)), stored)
    np.testing.assert_allclose(stored.astype(np.float32), rows, atol=2e-3)


def test_unit_rows_is_idempotent_in_float32():
    rows = np.random.default_rng(0).standard_normal((500, 768)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True) * 1.0005
    once = unit_rows(rows)
    np.testing.assert_array_equal(unit_rows(once), once)
    assert np.abs(np.linalg.norm(once.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_fingerprint_ignores_compression_and_text_width(saved):
    before = Dataset.load(saved).fingerprint
    rewrite(saved, texts=raw_arrays(saved)["texts"].astype("<U200"))
    assert Dataset.load(saved).fingerprint == before


@pytest.mark.parametrize(
    "name", ["bank", "texts", "chain_values", "chain_tmd", "split", "chain_first", "chain_source"]
)
def test_fingerprint_changes_with_each_array(name):
    data = make_dataset()
    array = getattr(data, name).copy()
    if name == "bank":
        array[3] = -array[3]
    elif name == "texts":
        array[3] = "other"
    elif name in ("split", "chain_values", "chain_source"):
        array[3] = (array[3] + 1) % 2
    elif name == "chain_first":
        array[3] = 1
    else:
        array[3, 3] += 1
    assert Dataset(**fields_of(data) | {name: array}).fingerprint != data.fingerprint


def test_fingerprint_tells_source_names_apart_but_not_other_meta():
    data = make_dataset()
    renamed = Dataset(**fields_of(data) | {"meta": data.meta | {"sources": ["wordnet", "go"]}})
    noted = Dataset(**fields_of(data) | {"meta": data.meta | {"licence": "other"}})
    assert renamed.fingerprint != data.fingerprint == noted.fingerprint


def test_fingerprint_tells_float16_from_float32():
    data = make_dataset()
    assert Dataset(**fields_of(data) | {"bank_dtype": "float16"}).fingerprint != data.fingerprint


def test_a_failed_save_keeps_the_old_file(saved, monkeypatch):
    before = saved.read_bytes()

    def disk_full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez_compressed", disk_full)
    with pytest.raises(OSError, match="No space"):
        make_dataset(seed=1).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_save_into_a_missing_folder_fails(tmp_path):
    with pytest.raises(FileNotFoundError):
        make_dataset().save(tmp_path / "absent" / "d.npz")


# --- access


def test_examples_are_all_prefixes_in_order():
    first = np.array([1, 2, 3, 2], dtype=np.uint8)
    data = make_dataset(4, chain_first=first, min_length=4, split=np.array([0, 1, 0, 0], np.uint8))
    found = data.examples("train")
    rows = list(
        zip(
            found.chain.tolist(),
            found.position.tolist(),
            found.last.tolist(),
            found.target.tolist(),
            strict=True,
        )
    )
    wanted = [
        (c, k, int(data.chain(c)[k - 1]), int(data.chain(c)[k]))
        for c in (0, 2, 3)
        for k in range(first[c], data.lengths[c])
    ]
    assert rows == wanted
    assert data.n_examples("train") == len(wanted)
    assert data.examples("test").chain.size == data.n_examples("test") == 0


def test_splits_part_the_chains():
    data = make_dataset()
    ids = np.concatenate([data.chains_in(s) for s in ("train", "val", "test")])
    assert sorted(ids.tolist()) == list(range(data.n_chains))
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        data.chains_in("dev")
    with pytest.raises(IndexError, match="chain 40"):
        data.chain(40)


# --- refusals of the dataset itself


def test_each_bad_array_is_named():
    data = make_dataset()
    nan_bank, long_bank = data.bank.copy(), data.bank.copy()
    nan_bank[4, 7], long_bank[2] = np.nan, long_bank[2] * 1.5
    zero_bank = data.bank.copy()
    zero_bank[5] = 0
    nan_tmd = data.chain_tmd.copy()
    nan_tmd[1, 1] = np.inf
    far_values = data.chain_values.copy()
    far_values[9] = data.n_concepts
    offsets = data.chain_offsets.copy()
    offsets[3] = offsets[2] + 1
    backwards = data.chain_offsets.copy()
    backwards[5] = backwards[3] - 1
    late = data.chain_first.copy()
    late[6] = data.lengths[6]
    n, c = data.n_chains, data.n_concepts
    cases = [
        ("bank", data.bank.astype(np.float64), r"'bank': float64 \(30, 768\).*float32 \(n, 768\)"),
        ("bank", data.bank[:, :700], r"\(30, 700\) found"),
        ("bank", nan_bank, "NaN or infinity in 1 rows, first row 4"),
        ("bank", long_bank, "row 2 has norm 1.5"),
        ("bank", zero_bank, "row 5 has norm 0"),
        ("bank", data.bank[:0], "no rows"),
        ("bank", None, "NoneType found"),
        ("texts", data.texts[1:], rf"'texts': .* unicode \({c},\) wanted"),
        ("texts", np.arange(c), "'texts': int64"),
        ("chain_values", data.chain_values.astype(np.int64), "'chain_values': int64"),
        ("chain_values", far_values, f"'chain_values': {c} found at index 9, 0 to {c - 1}"),
        ("chain_values", data.chain_values[:-1], "'chain_offsets': runs from 0"),
        ("chain_offsets", offsets, "chain 2 has length 1"),
        ("chain_offsets", backwards, "chain 4 has length -"),
        ("chain_offsets", np.zeros(1, np.int64), "no chains"),
        ("chain_source", np.full(n, 2, np.uint8), "'chain_source': 2 found"),
        ("chain_source", data.chain_source[:-1], f"'chain_source': uint8 .{n - 1},. found"),
        ("chain_tmd", data.chain_tmd[:, :15], r"'chain_tmd': float32 \(40, 15\)"),
        ("chain_tmd", nan_tmd, "'chain_tmd': NaN or infinity in 1 rows, first row 1"),
        ("split", np.full(n, 3, np.uint8), "'split': 3 found at index 0, 0 to 2"),
        ("split", data.split.astype(np.int32), "'split': int32"),
        ("chain_first", late, "'chain_first': .* found for chain 6"),
        ("chain_first", np.zeros(n, np.uint8), "'chain_first': 0 found for chain 0"),
        ("bank_dtype", "bfloat16", "bank_dtype 'bfloat16'"),
        ("meta", [], "'meta': list found"),
        ("meta", data.meta | {"schema_version": 2}, "schema_version 2 found, 1 wanted"),
        ("meta", data.meta | {"schema_version": True}, "schema_version True found"),
        ("meta", data.meta | {"encoder": "mpnet"}, "encoder 'mpnet' found"),
        ("meta", data.meta | {"sources": []}, "sources"),
        ("meta", data.meta | {"sources": ["a", "a"]}, "different names"),
        ("meta", data.meta | {"seed": np.int64(1)}, "cannot be written as JSON"),
    ]
    for name, value, message in cases:
        with pytest.raises(DatasetError, match=message):
            Dataset(**fields_of(data) | {name: value})


# --- refusals of the file


@pytest.mark.parametrize("key", ["bank", "texts", "chain_offsets", "split", "meta"])
def test_missing_key_is_named_with_the_way_out(saved, key):
    rewrite(saved, remove=[key])
    with pytest.raises(DatasetError, match=rf"lacks the keys \['{key}'\].*data import"):
        Dataset.load(saved)


def test_unknown_key_is_refused(saved):
    rewrite(saved, extra=np.zeros(3))
    with pytest.raises(DatasetError, match=r"unknown keys \['extra'\]"):
        Dataset.load(saved)


def test_key_held_twice_is_refused(saved):
    with zipfile.ZipFile(saved, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("split.npy", archive.read("split.npy"))
    with pytest.raises(DatasetError, match=r"keys \['split'\] more than once"):
        Dataset.load(saved)


def test_content_other_than_the_fingerprint_in_the_file_is_refused(saved):
    rewrite(saved, remove=["chain_tmd"])
    with pytest.raises(DatasetError, match="the file was damaged or edited"):
        Dataset.load(saved)


def test_object_arrays_are_refused_unread(saved):
    rewrite(saved, texts=np.array(["a", None] * 15, dtype=object))
    with pytest.raises(DatasetError, match="key 'texts' is an object array"):
        Dataset.load(saved)


def test_float64_bank_is_refused_with_the_path(saved):
    rewrite(saved, bank=raw_arrays(saved)["bank"].astype(np.float64))
    with pytest.raises(DatasetError, match=r"d\.npz: key 'bank': float64 found, float16 or"):
        Dataset.load(saved)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        (np.array("{"), "not JSON"),
        (np.array("[]"), "JSON list found"),
        (np.array(3), "one unicode string"),
        (np.array(json.dumps({"schema_version": 99})), "schema_version 99 found, 1 wanted"),
        (np.array("{}"), "schema_version None found"),
    ],
)
def test_bad_meta(saved, meta, message):
    rewrite(saved, meta=meta)
    with pytest.raises(DatasetError, match=message):
        Dataset.load(saved)


def test_other_kinds_of_file(tmp_path):
    with pytest.raises(DatasetError, match="no such file"):
        Dataset.load(tmp_path / "absent.npz")
    with pytest.raises(DatasetError, match="no such file"):
        Dataset.load(tmp_path)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(DatasetError, match=r"not a whole \.npz"):
        Dataset.load(tmp_path / "one.npy")
    (tmp_path / "empty.npz").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"not a whole \.npz"):
        Dataset.load(tmp_path / "empty.npz")
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(DatasetError, match=r"readme\.txt"):
        npz_keys(tmp_path / "z.npz")


@given(data=st.data())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_damaged_files_are_refused_or_read_whole(saved, tmp_path, data):
    """Cut or with one byte changed: `DatasetError`, or (in padding) the very same content."""
    whole = saved.read_bytes()
    damaged = tmp_path / "damaged.npz"
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged.write_bytes(whole[:at])
    else:
        damaged.write_bytes(whole[:at] + bytes([whole[at] ^ 0x5A]) + whole[at + 1 :])
    try:
        found = Dataset.load(damaged).fingerprint
    except DatasetError as error:
        found = str(error)
    assert "damaged.npz" in found or found == Dataset.load(saved).fingerprint


def test_load_dataset_opens_a_dataset_file(saved, tmp_path):
    assert is_dataset_file(saved)
    assert load_dataset(saved).fingerprint == Dataset.load(saved).fingerprint
    np.savez(tmp_path / "old.npz", train_context=np.zeros(3))
    assert not is_dataset_file(tmp_path / "old.npz")
