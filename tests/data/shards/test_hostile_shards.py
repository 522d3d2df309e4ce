"""Folders of mapped arrays that were damaged or forged: refused with folder, file and key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from data_maker import make_dataset

from ocp_mamba.cli.data import data as command
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards.convert import shard, unshard, verify_shards
from ocp_mamba.data.shards.mapped import HEADER
from ocp_mamba.errors import DatasetError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(relations=True).save(tmp_path / "d.npz")
    shard(tmp_path / "d.npz", tmp_path / "d")
    return tmp_path / "d"


def edit(folder: Path, change: Any, *, keep_checksum: bool = False) -> None:
    listed = json.loads((folder / "meta.json").read_text())
    if not keep_checksum:
        del listed["checksum"]
    change(listed)
    (folder / "meta.json").write_text(json.dumps(listed))


def array_of(listed: dict[str, Any], name: str, **changed: object) -> None:
    listed["arrays"][name].update(changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(arrays=None), "key 'arrays': None found, dict wanted"),
        (lambda m: m.update(arrays=[1]), r"key 'arrays': \[1\] found, dict wanted"),
        (lambda m: m.update(meta="x"), "key 'meta': 'x' found, dict wanted"),
        (lambda m: m.update(bank_dtype="float64"), "bank_dtype 'float64' found"),
        (lambda m: m.update(fingerprint=None), "key 'fingerprint': None found"),
        (lambda m: m["arrays"].update(bank=3), "array 'bank': 3 found, object wanted"),
        (lambda m: array_of(m, "bank", dtype=None), "array 'bank': None rows of"),
        (lambda m: array_of(m, "bank", dtype="O"), "array 'bank': 'O' rows of"),
        (lambda m: array_of(m, "texts", dtype="<U0"), "array 'texts': '<U0' rows of"),
        (lambda m: array_of(m, "texts", dtype="<U" + "9" * 90), "array 'texts': '<U9"),
        (lambda m: array_of(m, "texts", dtype="<U5,<U5"), "array 'texts': '<U5,<U5' rows of"),
        (lambda m: array_of(m, "bank", row=768), "'<f4' rows of 768 found"),
        (lambda m: array_of(m, "bank", row=[[768]]), r"'<f4' rows of \[\[768\]\] found"),
        (lambda m: array_of(m, "bank", rows="30"), "array 'bank': '30' rows found"),
        (lambda m: array_of(m, "bank", rows=-1), "array 'bank': -1 rows found"),
        (lambda m: array_of(m, "bank", rows=True), "array 'bank': True rows found"),
        (lambda m: array_of(m, "bank", rows=1.5), r"array 'bank': 1\.5 rows found"),
        (lambda m: array_of(m, "bank", rows=10**18), r"bank\.npy: \d+ bytes found, \d+ bytes wan"),
        (lambda m: array_of(m, "bank", rows=None), "array 'bank': None rows found"),
        (lambda m: m["meta"].update(sources=5), "key 'meta': sources 5 found"),
        (lambda m: m["meta"].update(encoder=None), "key 'meta': encoder None found"),
        (lambda m: m["meta"].pop("relations"), "key 'meta': relations None found"),
        (lambda m: m["meta"].update(schema_version="1"), "schema_version '1' found"),
        (lambda m: m["arrays"].pop("chain_relation"), "absent, but there is"),
    ],
)
def test_a_hostile_list_of_arrays_is_refused(folder, change, message):
    edit(folder, change)
    with pytest.raises(DatasetError, match=rf"dataset folder .*d: .*{message}"):
        load_dataset(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"\xff", "not UTF-8 text"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": ' + b"1" * 5000 + b"}", "5000 digits"),
        (b"[]", "JSON list found"),
        (b'{"format": {}}', "an object with format"),
    ],
)
def test_a_list_that_is_no_such_object_is_refused(folder, text, message):
    (folder / "meta.json").write_bytes(text)
    with pytest.raises(DatasetError, match=rf"dataset folder .*d: .*meta\.json.*{message}"):
        load_dataset(folder)


def test_an_edit_of_the_list_is_noticed(folder):
    edit(folder, lambda m: m["meta"]["encoder"].update(name="other"), keep_checksum=True)
    with pytest.raises(DatasetError, match=r"meta\.json: the file was damaged or edited"):
        load_dataset(folder)


def test_a_folder_of_an_earlier_version_has_no_checksum_and_opens(folder):
    edit(folder, lambda m: None)
    assert load_dataset(folder).n_concepts == 30


@pytest.mark.parametrize("name", ["bank", "texts", "chain_values", "chain_offsets", "split"])
def test_a_flipped_bit_is_found_by_the_check_and_before_it_is_written_elsewhere(name, folder):
    content = bytearray((folder / f"{name}.npy").read_bytes())
    content[HEADER + 9] ^= 0x40
    (folder / f"{name}.npy").write_bytes(content)
    with pytest.raises(DatasetError, match=r"dataset folder .*d: .*(key '|was damaged or edited)"):
        verify_shards(load_dataset(folder), folder)
    with pytest.raises(DatasetError, match="dataset folder"):
        unshard(folder, folder.with_name("back.npz"))
    assert not folder.with_name("back.npz").exists()
    checked = CliRunner().invoke(command, ["check", str(folder), "--no-track"])
    assert checked.exit_code == 2
    assert "dataset folder" in checked.output


def test_files_that_are_no_files_are_refused(folder):
    (folder / "bank.npy").unlink()
    (folder / "bank.npy").mkdir()
    with pytest.raises(DatasetError, match=r"bank\.npy: no such file found"):
        load_dataset(folder)


def test_a_file_with_a_bad_content_is_not_sharded(tmp_path):
    """It has no fingerprint that would tell."""
    make_dataset().save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as file:
        arrays = dict(file)
    meta = json.loads(str(arrays["meta"]))
    del meta["fingerprint"]
    arrays["meta"] = np.array(json.dumps(meta))
    arrays["chain_values"][5] = 10_000
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(DatasetError, match=r"bad\.npz: key 'chain_values': 10000 found"):
        shard(tmp_path / "bad.npz", tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


@pytest.mark.parametrize(
    ("key", "array", "message"),
    [
        ("split", np.uint8(3), r"key 'split': uint8 \(\) found, \|u1 \(n\) wanted"),
        ("chain_tmd", np.zeros((40, 3), np.float32), r"key 'chain_tmd': float32 \(40, 3\) found"),
        ("bank", np.zeros((30, 768), np.int32), r"key 'bank': int32 \(30, 768\) found"),
        ("texts", np.zeros(30), r"key 'texts': float64 \(30,\) found"),
    ],
)
def test_arrays_that_a_folder_cannot_hold_are_refused(key, array, message, tmp_path):
    make_dataset().save(tmp_path / "d.npz")
    with np.load(tmp_path / "d.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "d.npz", **arrays | {key: array})
    with pytest.raises(DatasetError, match=rf"d\.npz: {message}"):
        shard(tmp_path / "d.npz", tmp_path / "x")


@pytest.mark.parametrize("rows", [3, None, {"a": 1}])
def test_a_hostile_folder_of_the_older_format_is_refused(folder, tmp_path, rows):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    edit(old, lambda m: (m.update(format="ocp_mamba shards 1"), array_of(m, "bank", rows=rows)))
    with pytest.raises(DatasetError, match=r"meta\.json: array 'bank': a list of rows wanted"):
        shard(old, tmp_path / "new")
