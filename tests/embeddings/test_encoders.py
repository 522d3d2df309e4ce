from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from encoder_maker import CountingEncoder, save_tiny_encoder

from ocp_mamba.embeddings.encoders import (
    SHARD,
    SentenceTransformerEncoder,
    encode_with_resume,
    weight_hash,
)
from ocp_mamba.errors import EncoderError

TEXTS = ["sea snail", "abalone", "a", "café", "living thing of the sea"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def encoder(folder):
    return SentenceTransformerEncoder(str(folder), batch_size=2, device="cpu")


def test_vectors_are_unit_float32_and_those_of_the_library(encoder, folder):
    from sentence_transformers import SentenceTransformer

    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    assert found.shape == (5, 768)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    library = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    library = library / np.linalg.norm(library, axis=1, keepdims=True)
    np.testing.assert_allclose(found, library, atol=1e-6)
    assert encoder.encode([]).shape == (0, 768)


def test_order_and_batch_do_not_matter(encoder, folder):
    alone = np.concatenate([encoder.encode([text]) for text in TEXTS])
    large = SentenceTransformerEncoder(str(folder), batch_size=64, device="cpu")
    np.testing.assert_allclose(large.encode(TEXTS), alone, atol=1e-5)
    np.testing.assert_allclose(large.encode(TEXTS[::-1])[::-1], alone, atol=1e-5)


def test_identity(encoder, folder):
    weights = (folder / "model.safetensors").read_bytes()
    assert encoder.weight_hash == hashlib.sha256(weights).hexdigest()
    assert encoder.name == "tiny-encoder"
    named = SentenceTransformerEncoder(str(folder), name="org/tiny", device="cpu")
    assert named.name == "org/tiny"


@pytest.mark.parametrize(
    ("asked", "cached"),
    [
        ("org/tiny", "models--org--tiny"),
        ("all-mpnet-base-v2", "models--sentence-transformers--all-mpnet-base-v2"),
    ],
)
def test_a_name_is_found_in_the_hub_cache_with_the_same_hash(
    encoder, folder, tmp_path, monkeypatch, asked, cached
):
    """The cache as the hub's client lays it out, and no network."""
    from huggingface_hub import constants

    repo = tmp_path / cached
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repo / "snapshots" / ("0" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    found = SentenceTransformerEncoder(asked, device="cpu")
    assert (found.name, found.weight_hash) == (asked, encoder.weight_hash)
    np.testing.assert_allclose(found.encode(TEXTS), encoder.encode(TEXTS), atol=1e-6)


def test_unknown_name_says_the_ways_out(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r"(?s)'org/absent' cannot be loaded: .*fetch_mpnet\.py"):
        SentenceTransformerEncoder("org/absent")


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(EncoderError, match=r"pip install 'ocp-mamba\[encode\]'"):
        SentenceTransformerEncoder("any")


@pytest.mark.parametrize(
    ("missing", "message"),
    [("config.json", "lacks config.json"), ("model.safetensors", "cannot be loaded")],
)
def test_folder_that_lacks_files(folder, tmp_path, missing, message):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    (broken / missing).unlink()
    with pytest.raises(EncoderError, match=message):
        SentenceTransformerEncoder(str(broken))


def test_other_width_is_refused(tmp_path):
    narrow = save_tiny_encoder(tmp_path, width=64)
    with pytest.raises(EncoderError, match="vectors of 64 found, 768 wanted"):
        SentenceTransformerEncoder(str(narrow), device="cpu")


def test_vectors_without_direction_name_the_text(encoder, monkeypatch):
    class Broken:
        def encode(self, texts, **_):
            rows = np.ones((len(texts), 768))
            rows[1] = 0
            rows[2] = np.nan
            return rows

    monkeypatch.setattr(encoder, "_model", Broken())
    with pytest.raises(EncoderError, match=r"'abalone' has norm 0\.0 \(2 vectors are wrong\)"):
        encoder.encode(TEXTS)


# --- the weights' hash


def test_hash_of_several_files_looks_only_at_the_modules(tmp_path):
    for name, content in (("model.safetensors", "a"), ("2_Dense/model.safetensors", "b")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / "modules.json").write_text(json.dumps([{"path": ""}, {"path": "2_Dense"}]))
    whole = weight_hash(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("the same weights in another format")
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.safetensors").write_text("c")
    assert weight_hash(tmp_path) == whole
    (tmp_path / "2_Dense" / "model.safetensors").write_text("B")
    assert weight_hash(tmp_path) != whole


def test_hash_of_bin_weights_and_of_none(tmp_path):
    with pytest.raises(EncoderError, match=r"lacks weights; model\.safetensors or pytorch_model"):
        weight_hash(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"w")
    assert weight_hash(tmp_path) == hashlib.sha256(b"w").hexdigest()


# --- resuming

MANY = [f"concept {i}" for i in range(2 * SHARD + 10)]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    wanted = CountingEncoder().encode(MANY)
    killed = CountingEncoder(fail_after=SHARD)
    with pytest.raises(KeyboardInterrupt):
        encode_with_resume(killed, MANY, tmp_path, progress=False)
    again = CountingEncoder()
    found = encode_with_resume(again, MANY, tmp_path, progress=False)
    np.testing.assert_array_equal(found, wanted)
    assert (killed.encoded, again.encoded) == (SHARD, SHARD + 10)
    third = CountingEncoder()
    np.testing.assert_array_equal(encode_with_resume(third, MANY, tmp_path), wanted)
    assert third.encoded == 0


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_shard_is_encoded_again(tmp_path, damage):
    wanted = encode_with_resume(CountingEncoder(), MANY, tmp_path, progress=False)
    shard = sorted(tmp_path.glob("*.npy"))[0]
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1  # a last bit of one value: still a unit row
    shard.write_bytes({"cut": content[:-9], "flip": content, "empty": b""}[damage])
    again = CountingEncoder()
    np.testing.assert_array_equal(encode_with_resume(again, MANY, tmp_path, progress=False), wanted)
    assert again.encoded in (SHARD, 10)
    assert len(list(tmp_path.iterdir())) == 3


def test_another_encoder_or_other_texts_do_not_share_shards(tmp_path):
    encode_with_resume(CountingEncoder(), MANY, tmp_path, progress=False)
    other = CountingEncoder(weight_hash="2" * 64)
    found = encode_with_resume(other, MANY, tmp_path, progress=False)
    assert other.encoded == len(MANY)
    np.testing.assert_array_equal(found, CountingEncoder("2" * 64).encode(MANY))
    changed = CountingEncoder()
    encode_with_resume(changed, ["new", *MANY[1:]], tmp_path, progress=False)
    assert changed.encoded == SHARD


def test_progress_counts_texts(tmp_path, capsys):
    encode_with_resume(CountingEncoder(), MANY, tmp_path)
    assert f"{len(MANY)}/{len(MANY)}" in capsys.readouterr().err
    assert encode_with_resume(CountingEncoder(), [], tmp_path, progress=False).shape == (0, 768)
    assert capsys.readouterr().err == ""


def test_importing_the_module_loads_no_encoder_library():
    code = (
        "import sys, ocp_mamba.embeddings.encoders; "
        "sys.exit('sentence_transformers' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
