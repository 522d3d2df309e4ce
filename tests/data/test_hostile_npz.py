"""Dataset files that somebody forged: refused before they take memory, with file and key."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from data_maker import make_dataset

from ocp_mamba.data import npz
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.npz import LIMIT_VARIABLE, Npz
from ocp_mamba.data.shards.convert import shard
from ocp_mamba.errors import DatasetError


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_dataset().save(tmp_path / "d.npz")
    return tmp_path / "d.npz"


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, members: dict[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    return content.getvalue()


def with_header(text: str, content: bytes = b"") -> bytes:
    """A member with this header, whatever it says."""
    header = f"{text}\n".encode("latin-1")
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def test_a_bomb_is_refused_unread_and_the_limit_can_be_raised(saved, monkeypatch):
    monkeypatch.setattr(npz, "ALWAYS_ALLOWED", 1 << 16)
    bomb = members_of(saved) | {"chain_tmd.npy": npy(np.zeros((40, 10_000), np.float32))}
    write(saved, bomb)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("content was read"))
    for read in (Dataset.load, load_dataset, lambda path: shard(path, path.with_suffix(""))):
        with pytest.raises(DatasetError, match=rf"d\.npz: declares arrays of .*{LIMIT_VARIABLE}"):
            read(saved)
    monkeypatch.undo()
    monkeypatch.setattr(npz, "ALWAYS_ALLOWED", 1 << 16)
    monkeypatch.setenv(LIMIT_VARIABLE, "0.5")
    with pytest.raises(DatasetError, match=r"'chain_tmd': float32 \(40, 10000\) found"):
        Dataset.load(saved)
    monkeypatch.setenv(LIMIT_VARIABLE, "much")
    with pytest.raises(DatasetError, match=f"{LIMIT_VARIABLE} is 'much', a number of GiB wanted"):
        Dataset.load(saved)


def test_a_file_that_is_large_itself_is_no_bomb(saved, monkeypatch):
    monkeypatch.setattr(npz, "ALWAYS_ALLOWED", 1)
    assert Dataset.load(saved).n_concepts == 30


HUGE = "{'descr': '<f4', 'fortran_order': False, 'shape': (500000000, 768), }"


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (HUGE, r"takes 1,536,000,000,000 bytes, and the member has 8"),
        (HUGE.replace("<f4", "<U0"), "takes 0 bytes"),
        (HUGE.replace("<f4", "V0"), "takes 0 bytes"),
        (HUGE.replace("500000000", "-2"), "takes -6,144 bytes"),
        (HUGE.replace("500000000, 768", "-1, -2"), "and the member has 8"),
        (HUGE.replace("'<f4'", "[[" * 3000), "its header cannot be read"),
        (HUGE.replace("500000000", "9" * 5000), "its header cannot be read"),
        ("{}", "its header cannot be read"),
        ("__import__('os').getcwd()", "its header cannot be read"),
        ("(" * 500, "its header cannot be read"),
        ("", "its header cannot be read"),
    ],
)
def test_a_header_that_declares_what_is_not_there_is_refused(saved, header, message):
    write(saved, members_of(saved) | {"bank.npy": with_header(header, b"12345678")})
    with pytest.raises(DatasetError, match=rf"d\.npz: key 'bank': .*{message}"):
        Dataset.load(saved)


def test_pickles_are_named_and_stay_closed(saved):
    write(saved, members_of(saved) | {"split.npy": npy(np.array([{}], dtype=object))})
    with pytest.raises(DatasetError, match=r"d\.npz: key 'split' is an object array"):
        Dataset.load(saved)


@pytest.mark.parametrize(
    ("name", "message"),
    [("../bank.npy", "names outside of the file"), ("/bank.npy", "names outside of the file")],
)
def test_names_outside_are_refused(saved, name, message):
    write(saved, members_of(saved) | {name: npy(np.zeros(3))})
    with pytest.raises(DatasetError, match=message):
        Dataset.load(saved)


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write_are_refused(saved, how):
    write(saved, members_of(saved), how)
    with pytest.raises(DatasetError, match=r"d\.npz: key 'bank' is encrypted, or compressed in a"):
        Dataset.load(saved)


def test_a_file_of_very_many_members_is_refused(tmp_path):
    write(tmp_path / "m.npz", {f"{i}.npy": b"" for i in range(1001)})
    with pytest.raises(DatasetError, match=r"m\.npz: holds 1,001 members"):
        Npz(tmp_path / "m.npz")


def edited(array: np.ndarray, code: int) -> np.ndarray:
    codes = array.copy().reshape(-1).view(np.uint32)
    codes[3] = code
    return codes.view(array.dtype).reshape(array.shape)


@pytest.mark.parametrize("code", [0x110000, 0xFFFFFFFF, 0xD800, 0xDFFF])
@pytest.mark.parametrize("key", ["texts", "meta"])
def test_numbers_that_are_no_characters_are_refused(saved, key, code):
    array = Npz(saved).array(key)
    write(saved, members_of(saved) | {f"{key}.npy": npy(edited(array, code))})
    with pytest.raises(DatasetError, match=rf"d\.npz: key '{key}': 0x{code:x} found in text 0"):
        Dataset.load(saved)


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ("[" * 100_000, "key 'meta': not JSON that can be read: it is nested too deeply"),
        ('{"seed": ' + "7" * 5000 + "}", "key 'meta': not JSON .*5000 digits"),
        ('{"schema_version": [1]}', r"schema_version \[1\] found"),
        (
            '{"schema_version": 1, "encoder": {"name": 1, "weight_hash": null}, "sources": ["a"]}',
            "an object with the texts name and weight_hash wanted",
        ),
        (
            '{"schema_version": 1, "encoder": {"name": "a", "weight_hash": "b"}, "sources": {}}',
            "sources {} found",
        ),
    ],
)
def test_a_hostile_meta_is_refused(saved, meta, message):
    write(saved, members_of(saved) | {"meta.npy": npy(np.array(meta))})
    with pytest.raises(DatasetError, match=rf"d\.npz: .*{message}"):
        Dataset.load(saved)


def test_offsets_that_come_back_by_overflow_are_refused():
    """Their differences, computed in int64, are all at least 2."""
    n = 12
    offsets = np.array([0, 2**63 - 1, -2, n], dtype=np.int64)
    assert (np.diff(offsets) >= 2).all()
    good = make_dataset(3, 10, min_length=4, max_length=4, tmd=False)
    with pytest.raises(DatasetError, match="key 'chain_offsets': 9223372036854775807 found"):
        make_dataset(3, 10, min_length=4, max_length=4, tmd=False, chain_offsets=offsets)
    assert len(good.chain_values) == n


@pytest.mark.parametrize("size", [0, 3, 21, 22, 500])
def test_a_file_that_is_cut_off_is_refused(saved, size):
    saved.write_bytes(saved.read_bytes()[:size])
    with pytest.raises(DatasetError, match=r"d\.npz: not a whole \.npz file"):
        load_dataset(saved)
