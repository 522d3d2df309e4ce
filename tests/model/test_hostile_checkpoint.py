"""``.pt`` files that were damaged or forged: refused at once, with file and key; nothing runs."""

from __future__ import annotations

import io
import logging
import os
import pickle
import random
import time
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import rewrite

from ocp_mamba.baselines.checkpoint import load_predictor
from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import CheckpointError
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from ocp_mamba.system.tensor_file import MARK, write_tensors

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
SHAPE = ModelConfig(d_model=32, n_layers=2, headdim=16)
CONFIG = asdict(SHAPE)
WEIGHT = "layers.0.mixer.in_proj.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "m.pt"
    encoder = {"name": "random", "weight_hash": "0" * 64}
    save_checkpoint(path, build_model(SHAPE), dataset_fingerprint="f" * 64, encoder=encoder)
    return path


def weights(path: Path, **changed: Any) -> dict[str, Any]:
    return {**torch.load(path, weights_only=True)["state_dict"], **changed}


def test_every_flipped_bit_is_noticed(saved):
    whole, rng = saved.read_bytes(), random.Random(0)
    places = [rng.randrange(len(whole)) for _ in range(80)]
    places += [0, len(whole) - 1, len(whole) - 64, len(whole) - 65, len(whole) - 83]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        saved.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint .*m\.pt: "):
            load_predictor(saved)
    saved.write_bytes(whole)
    assert load_model(saved).config == SHAPE


@pytest.mark.parametrize("keep", [0, 1, 22, 100, 5000, -1, -82, -83, -84])
def test_a_file_that_is_cut_off_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"m\.pt: (the file is empty|not readable|it has no)"):
        load_model(saved)


def test_a_digest_is_that_of_the_bytes_before_it(saved):
    content = saved.read_bytes()
    assert content[-83:-64] == b"\x51\x00" + MARK
    with zipfile.ZipFile(saved) as archive:  # what other programs see
        assert archive.testzip() is None
        assert archive.comment.startswith(MARK)


@pytest.mark.parametrize("version", [1, 2])
def test_an_older_file_loads_and_what_cannot_be_checked_is_said(saved, version, caplog):
    torch.save(torch.load(saved, weights_only=True) | {"format_version": version}, saved)
    with caplog.at_level(logging.WARNING):
        load_model(saved)
    assert f"m.pt is of format {version}, which has no digest" in caplog.text
    caplog.clear()
    load_checkpoint(FIXTURES / "one_stack_v1.pt")
    assert "one_stack_v1.pt is of format 1, which has no digest" in caplog.text


def test_a_file_of_this_format_without_a_digest_is_refused(saved):
    torch.save(torch.load(saved, weights_only=True), saved)
    with pytest.raises(CheckpointError, match=r"m\.pt: it has no digest"):
        load_model(saved)


FORGED = [
    ({"state_dict": None}, "key 'state_dict': None found, dict wanted"),
    ({"state_dict": [1, 2]}, r"key 'state_dict': \[1, 2\] found, dict wanted"),
    ({"state_dict": {}}, r"key 'state_dict': the weights do not fit .* missing \['input"),
    ({"state_dict": {3: torch.zeros(2)}}, "key 'state_dict': 3 is"),
    ({"encoder": None}, "key 'encoder': None found, dict wanted"),
    ({"encoder": {"name": ["x"]}}, r"key 'encoder': 'name' is \['x'\], a text wanted"),
    ({"dataset_fingerprint": 7}, "key 'dataset_fingerprint': 7 found, str wanted"),
    ({"loop": [1]}, r"key 'loop': \[1\] found, dict wanted"),
    ({"kind": None}, "settings"),
    ({"kind": "RelationLVM"}, "its kind is RelationLVM, but its model_config is that of OCPMamba"),
    ({"format_version": "3"}, "format '3', this version reads 1 to 3"),
    ({"format_version": torch.zeros(3)}, r"format tensor\(\[0"),
    ({"kind": torch.zeros(3)}, "settings"),
    ({"format_version": True}, "format True, this version reads 1 to 3"),
    ({"format_version": 2**2000}, "format 114"),
    ({"extra": 1}, r"keys \['extra'\] are unknown"),
    ({"model_config": None}, "key 'model_config': None found, dict wanted"),
    ({"model_config": CONFIG | {"layers": 3}}, "key 'model_config': .*'layers'"),
    ({"model_config": CONFIG | {"n_layers": "2"}}, "key 'model_config': n_layers must be a whole"),
    ({"model_config": CONFIG | {"n_layers": 10**9}}, "key 'model_config': n_layers must be a who"),
    ({"model_config": CONFIG | {"n_layers": 1024}}, r"missing \['layers\.10\."),
    ({"model_config": CONFIG | {"d_model": 65_536}}, r"in_proj.* wanted|.*\(65536"),
    ({"model_config": CONFIG | {"d_state": 4096}}, r"key 'state_dict': .*float32 \(8\d\d\d, 32\)"),
    ({"model_config": CONFIG | {"expand": 10**30}}, "key 'model_config': expand must be a whole"),
    ({"model_config": CONFIG | {"dropout": float("nan")}}, "dropout must be a finite number"),
    ({"model_config": CONFIG | {"relations": 3}}, "relations must be a list of names"),
    ({"model_config": CONFIG | {"relations": ["a"] * 100}}, "its kind is OCPMambaLVM, but"),
]


@pytest.mark.parametrize(("changed", "message"), FORGED, ids=range(len(FORGED)))
def test_a_forged_file_is_refused_with_its_key(saved, changed, message):
    rewrite(saved, **changed)
    began = time.process_time()
    with pytest.raises(CheckpointError, match=rf"m\.pt: .*({message})"):
        load_predictor(saved)
    assert time.process_time() - began < 10  # 10**9 layers would take hours


TENSORS = [
    (torch.full((168, 32), float("nan")), "holds NaN or infinity"),
    (torch.full((168, 32), float("inf")), "holds NaN or infinity"),
    (torch.zeros(168, 32, dtype=torch.int32), r"is int32 \(168, 32\), floats wanted"),
    (torch.zeros(168, 32, dtype=torch.float64), r"is float64 \(168, 32\), float32 \(\d+, 32\) wa"),
    (torch.zeros(168, 32, dtype=torch.complex64), "a plain tensor in memory wanted"),
    (torch.zeros(3, 4), r"is float32 \(3, 4\), float32 \(\d+, 32\) wanted"),
    (
        torch.zeros(1).expand(10**7, 10**5),
        r"a tensor \(10000000, 100000\) found, of which the file",
    ),
    (torch.zeros(168, 32, device="meta"), "not readable|a plain tensor in memory wanted"),
    (torch.zeros(168, 32).to_sparse(), "it names|a plain tensor in memory wanted"),
    (torch.quantize_per_tensor(torch.zeros(168, 32), 0.1, 0, torch.qint8), "it names|a plain"),
    (torch.nn.Parameter(torch.zeros(168, 32)), "it names"),
    (torch.device("cpu"), "it names"),
    (bytearray(10), "it names"),
    ({1, 2}, "it names"),
    (None, f"'{WEIGHT}' is None, a tensor with a name wanted"),
    ([[1.0]], "is \\[\\[1.0\\]\\], a tensor with a name wanted"),
    ({"a": {}}, "a tensor with a name wanted"),
]


@pytest.mark.parametrize(("tensor", "message"), TENSORS, ids=range(len(TENSORS)))
def test_a_weight_that_is_none_is_refused_by_name(saved, tensor, message):
    rewrite(saved, state_dict=weights(saved, **{WEIGHT: tensor}))
    with pytest.raises(CheckpointError, match=rf"m\.pt: .*({message})"):
        load_predictor(saved)


def test_a_memory_head_with_more_rows_than_its_config_is_refused(tmp_path):
    config = ModelConfig(**{**CONFIG, "n_memory": 8})
    path, model = tmp_path / "m.pt", build_model(config)
    model.memory_head.set_memory(torch.eye(8, 768))
    save_checkpoint(path, model, dataset_fingerprint="f", encoder={})
    assert len(load_model(path).memory_head.memory) == 8
    rewrite(path, state_dict=weights(path, **{"memory_head.memory": torch.eye(9, 768)}))
    with pytest.raises(CheckpointError, match=r"memory_head\.memory is float32 \(9, 768\)"):
        load_model(path)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def shared(doublings: int) -> list[Any]:
    """A list that holds itself in more places than there is memory for."""
    value: list[Any] = ["x"]
    for _ in range(doublings):
        value = [value, value]
    return value


@pytest.mark.parametrize("loop", [{"a": nested(100)}, {"a": shared(30)}, {("a", "b"): 1}])
def test_values_that_are_nested_without_end_are_refused(saved, loop):
    rewrite(saved, loop=loop)
    with pytest.raises(CheckpointError, match=r"m\.pt: key 'loop.*(too many|no text and no num)"):
        load_model(saved)


class Payload:
    """Runs a command where it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def forged_zip(path: Path, pickled: bytes, how: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", how) as archive:
        archive.writestr("m/data.pkl", pickled)
        archive.writestr("m/version", "3\n")
        archive.writestr("m/byteorder", "little")


@pytest.mark.parametrize("function", [os.system, exec, bytearray, torch.load, "".join])
def test_nothing_in_a_pickle_is_called(tmp_path, function):
    target = tmp_path / "written"
    argument: Any = {bytearray: 10**11, "".join: []}.get(function, f"touch {target}")
    for protocol in (2, 4):
        pickled = pickle.dumps({"a": Payload(function, argument)}, protocol=protocol)
        forged_zip(tmp_path / "m.pt", pickled)
        with pytest.raises(CheckpointError, match=r"m\.pt: not readable with weights_only=True"):
            load_model(tmp_path / "m.pt")
    (tmp_path / "m.pt").write_bytes(pickled)  # a bare pickle, as older versions of torch wrote
    with pytest.raises(CheckpointError, match=r"m\.pt: not readable with weights_only=True"):
        load_model(tmp_path / "m.pt")
    assert not target.exists()


def test_compressed_and_doubled_records_are_refused(saved):
    with zipfile.ZipFile(saved) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(CheckpointError, match=r"m\.pt: it has compressed or doubled records"):
        load_model(saved)


def test_a_storage_that_is_larger_than_its_record_is_refused(saved):
    """Torch would read past the end of the file's content."""
    content = io.BytesIO()
    torch.save({"a": torch.zeros(16)}, content)
    grown = content.getvalue().replace(b"K\x10tq", b"K\xf0tq").replace(b"K\x10\x85q", b"K\xf0\x85q")
    assert grown != content.getvalue()
    saved.write_bytes(grown)
    with pytest.raises(CheckpointError, match=r"m\.pt: "):
        load_model(saved)


def test_tensors_are_in_memory_of_their_own(saved):
    """A file that is cut off later must not take the process down."""
    loaded = load_checkpoint(saved)
    with saved.open("r+b") as file:
        file.truncate(10)
    assert all(bool(tensor.isfinite().all()) for tensor in loaded.state_dict.values())


def test_the_writer_takes_any_plain_values(tmp_path):
    content = {"a": [1, 2.5, None, True, ("x", {3: torch.arange(3)})], "b": torch.zeros(0)}
    write_tensors(tmp_path / "x.pt", content)
    assert str(torch.load(tmp_path / "x.pt", weights_only=True)) == str(content)
