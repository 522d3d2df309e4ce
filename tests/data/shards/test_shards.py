from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from command import run
from data_maker import make_dataset

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.batches import RELEASE_EVERY, batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.fingerprint import chunks
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards import mapped
from ocp_mamba.data.shards.convert import shard, unshard, write_shards
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import DatasetError
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.jobs.common import open_data
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.system.paths import resolve_file
from ocp_mamba.training.trainer import fit

CONCEPTS = 4500
PARTS = [("float32", True), ("float16", False)]


def arrays_of(data: Dataset) -> dict[str, np.ndarray]:
    return {name: getattr(data, name) for name in mapped.ARRAYS if getattr(data, name) is not None}


@pytest.fixture(scope="module", params=PARTS, ids=lambda p: p[0])
def npz(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset file."""
    dtype, tmd = request.param
    first = np.full(500, 2, np.uint8) if not tmd else np.ones(500, np.uint8)
    data = make_dataset(500, CONCEPTS, 1, tmd=tmd, bank_dtype=dtype, chain_first=first)
    path = tmp_path_factory.mktemp("npz") / "data.npz"
    data.save(path)
    return path


@pytest.fixture
def folder(npz: Path, tmp_path: Path) -> Path:
    shard(npz, tmp_path / "data")
    return tmp_path / "data"


def test_a_folder_is_the_file(npz, folder):
    data, mapped = Dataset.load(npz), load_dataset(folder)
    assert mapped.fingerprint == data.fingerprint
    assert mapped.bank_dtype == data.bank_dtype
    assert mapped.meta == data.meta
    assert arrays_of(mapped).keys() == arrays_of(data).keys()
    for name, array in arrays_of(data).items():
        np.testing.assert_array_equal(getattr(mapped, name), array)
        assert getattr(mapped, name).dtype == array.dtype
        np.testing.assert_array_equal(np.load(folder / f"{name}.npy"), array)
    assert mapped.bank.flags.writeable  # torch warns of an array that is not
    mapped.bank[0] = 0
    np.testing.assert_array_equal(np.load(folder / "bank.npy"), data.bank)
    mapped.release()
    np.testing.assert_array_equal(mapped.bank, data.bank)


def in_older_format(folder: Path, rows_a_file: int) -> Path:
    """The same folder with several files an array, as older versions wrote it."""
    old = folder.with_name("old")
    old.mkdir()
    listed = json.loads((folder / "meta.json").read_text())
    del listed["checksum"]
    for name, entry in listed["arrays"].items():
        array = np.load(folder / f"{name}.npy")
        parts = np.split(array, range(rows_a_file, len(array), rows_a_file))
        entry["rows"] = [len(part) for part in parts]
        for number, part in enumerate(parts):
            np.save(old / f"{name}-{number:05d}.npy", part)
    (old / "meta.json").write_text(json.dumps(listed | {"format": "ocp_mamba shards 1"}))
    return old


def test_a_folder_of_the_older_format_says_how_to_write_it_anew(npz, folder, tmp_path):
    old = in_older_format(folder, 1000)
    with pytest.raises(DatasetError, match=f"data shard {old} NEW_FOLDER"):
        load_dataset(old)
    fingerprint = Dataset.load(npz).fingerprint
    assert f"fingerprint {fingerprint[:12]}" in run("data", "shard", old, tmp_path / "new")
    for path in folder.glob("*.npy"):
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert load_dataset(tmp_path / "new").fingerprint == fingerprint
    assert "is such a folder already" in run("data", "shard", folder, tmp_path / "x", code=2)
    (old / "bank-00001.npy").write_bytes(b"")
    assert "bank-00001.npy cannot be read" in run("data", "shard", old, tmp_path / "x", code=2)
    assert not (tmp_path / "x").exists()


def test_there_and_back_is_the_same_content(npz, folder, tmp_path):
    assert unshard(folder, tmp_path / "back.npz") == Dataset.load(npz).fingerprint
    assert Dataset.load(tmp_path / "back.npz").fingerprint == Dataset.load(npz).fingerprint
    with zipfile.ZipFile(npz) as old, zipfile.ZipFile(tmp_path / "back.npz") as new:
        assert sorted(old.namelist()) == sorted(new.namelist())


def test_training_from_a_folder_is_training_from_the_file(npz, folder):
    def train(data: Dataset) -> tuple[list[float], list[torch.Tensor]]:
        torch.manual_seed(0)
        model = OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16))
        validate = validator(data, BankIndex(data.bank))
        config = TrainConfig(batch_size=16, max_epochs=1, precision="float32")
        result = fit(model, data, config, validate=validate, progress=False)
        return [r.losses["total"] for r in result.history], list(model.parameters())

    (losses, weights), (mapped_losses, mapped_weights) = map(
        train, [Dataset.load(npz), load_dataset(folder)]
    )
    assert mapped_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(weights, mapped_weights, strict=True))


def test_the_command_line_converts_and_reads_folders(tmp_path):
    npz, folder = tmp_path / "small.npz", tmp_path / "small"
    make_dataset(60, 30).save(npz)
    fingerprint = Dataset.load(npz).fingerprint
    assert f"fingerprint {fingerprint[:12]}" in run("data", "shard", npz, folder)
    assert "straddles" in run("data", "check", folder, "--no-track")
    assert open_data(resolve_file(folder), allow_pickle=False, log=print).fingerprint == fingerprint
    run("data", "unshard", folder, tmp_path / "back.npz")
    assert Dataset.load(tmp_path / "back.npz").fingerprint == fingerprint
    assert "exists already" in run("data", "shard", npz, folder, code=2)
    absent = run("data", "unshard", tmp_path / "none", tmp_path / "x.npz", code=2)
    assert "meta.json: cannot be read" in absent


def test_a_damaged_folder_is_refused_by_name(folder):
    listed = json.loads((folder / "meta.json").read_text())
    listed.pop("checksum")

    def refused(match: str, **changed: object) -> None:
        (folder / "meta.json").write_text(json.dumps(listed | changed))
        with pytest.raises(DatasetError, match=match):
            load_dataset(folder)

    refused("format 'ocp_mamba shards 2'", format="other")
    refused("lists no array 'bank'", arrays={})
    bank = listed["arrays"]["bank"]
    refused("'bank': '<f8' rows", arrays=listed["arrays"] | {"bank": bank | {"dtype": "<f8"}})
    refused("schema_version 9 found, 1 wanted", meta=listed["meta"] | {"schema_version": 9})
    split = listed["arrays"]["split"]
    (folder / "split.npy").write_bytes((folder / "split.npy").read_bytes()[:-1])
    short = listed["arrays"] | {"split": split | {"rows": split["rows"] - 1}}
    refused(f"array 'split': {split['rows'] - 1} rows found", arrays=short)
    (folder / "bank.npy").write_bytes(b"")
    refused(r"bank.npy: 0 bytes found, \d+ bytes wanted")
    (folder / "bank.npy").unlink()
    refused("bank.npy: no such file found")


def test_what_cannot_be_sharded_leaves_nothing(npz, tmp_path):
    broken = tmp_path / "broken.npz"
    content = bytearray(npz.read_bytes())
    content[len(content) // 2] ^= 0xFF
    broken.write_bytes(content)
    with pytest.raises(DatasetError, match=r"cannot be read|was stated"):
        shard(broken, tmp_path / "data")
    data = Dataset.load(npz)
    chain_chunks = {name: chunks(array) for name, array in arrays_of(data).items()}
    with pytest.raises(DatasetError, match="'0000' was stated"):
        write_shards(tmp_path / "data", chain_chunks, data.meta, bank_dtype=data.bank_dtype,
                     fingerprint="0000")  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["broken.npz"]


def test_a_pass_over_a_folder_keeps_resident_memory_flat(tmp_path):
    """300 MB of bank; what a pass adds to resident memory, of either kind, stays far below."""
    rng = np.random.default_rng(0)
    rows = 100_000

    def bank():
        for _ in range(10):
            chunk = rng.standard_normal((rows // 10, 768), dtype=np.float32)
            yield chunk / np.linalg.norm(chunk, axis=1, keepdims=True)

    small = make_dataset(6000, 10, min_length=9, max_length=9, tmd=False)
    chain_chunks = {n: iter([a]) for n, a in arrays_of(small).items()}
    chain_chunks["bank"] = bank()
    chain_chunks["texts"] = iter([np.arange(rows).astype("U6")])
    chain_chunks["chain_values"] = iter([rng.integers(0, rows, 54_000).astype(np.int32)])
    write_shards(tmp_path / "data", chain_chunks, small.meta, bank_dtype="float32")
    data = load_dataset(tmp_path / "data")
    whole = torch.from_numpy(data.bank)
    next(batches(data, "train", 16, bank=whole, shuffle_seed=0))
    data.release()
    process = psutil.Process()
    before, most = process.memory_info().rss, 0
    for _ in batches(data, "train", 16, bank=whole, shuffle_seed=0):
        most = max(most, process.memory_info().rss - before)
    pages = RELEASE_EVERY * 16 * 9 * 65_536  # a row that is read brings up to 64 KiB with it
    assert most < pages + 30e6 < data.bank.nbytes / 2
    assert process.memory_info().rss - before < 100e6
