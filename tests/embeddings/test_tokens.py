"""Token vectors: the same as the encoder's, kept on the disk, and never taken from a bad file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoder_maker import save_tiny_encoder
from graph_maker import WordTokens

from ocp_mamba.embeddings import tokens as room
from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder
from ocp_mamba.embeddings.tokens import TransformerTokens, encode_tokens
from ocp_mamba.errors import EncoderError
from ocp_mamba.link_prediction.vectors import pool

TEXTS = ["ab, the first", "cd ef, the second one of all", "g, x"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SHARD", 2)


def test_token_vectors_pool_to_the_encoders_own_vectors(tmp_path: Path) -> None:
    folder = save_tiny_encoder(tmp_path)
    found = encode_tokens(
        TransformerTokens(str(folder), "float32"), TEXTS, tmp_path / "cache", progress=False
    )
    pooled, names = pool(found)
    wanted = SentenceTransformerEncoder(str(folder)).encode(TEXTS)
    np.testing.assert_allclose(pooled, wanted, atol=2e-3)
    assert found.name_lengths.tolist() == [2, 4, 1]  # the tiny encoder's tokens are letters
    assert not np.allclose(pooled, names, atol=1e-2)


def test_what_is_on_the_disk_is_not_encoded_again(tmp_path: Path) -> None:
    encoder = WordTokens()
    first = encode_tokens(encoder, TEXTS, tmp_path, progress=False)
    assert encoder.encoded == 3
    again = encode_tokens(encoder, TEXTS, tmp_path, progress=False)
    assert encoder.encoded == 3
    for row in range(3):
        np.testing.assert_array_equal(first[row], again[row])
        assert len(first[row]) == len(encoder.tokenize(TEXTS)[row])
    next(tmp_path.glob("*/00000002.npy")).unlink()  # as after a kill
    encode_tokens(encoder, TEXTS, tmp_path, progress=False)
    assert encoder.encoded == 4


def test_another_encoder_or_text_has_a_folder_of_its_own(tmp_path: Path) -> None:
    encode_tokens(WordTokens(), TEXTS, tmp_path, progress=False)
    encode_tokens(WordTokens("3" * 64), TEXTS, tmp_path, progress=False)
    encode_tokens(WordTokens(), ["ab, another", *TEXTS[1:]], tmp_path, progress=False)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", [b"nothing", b""])
def test_a_damaged_file_is_refused_with_the_way_out(tmp_path: Path, content: bytes) -> None:
    encode_tokens(WordTokens(), TEXTS, tmp_path, progress=False)
    next(tmp_path.glob("*/00000000.npy")).write_bytes(content)
    with pytest.raises(EncoderError, match=r"00000000.npy: damaged; remove it"):
        encode_tokens(WordTokens(), TEXTS, tmp_path, progress=False)


def test_a_file_of_another_length_is_refused(tmp_path: Path) -> None:
    encode_tokens(WordTokens(), TEXTS, tmp_path, progress=False)
    np.save(next(tmp_path.glob("*/00000000.npy")), np.zeros((3, 768), np.float16))
    with pytest.raises(EncoderError, match=r"float16 \(3, 768\) found, float16 \(16, D\) wanted"):
        encode_tokens(WordTokens(), TEXTS, tmp_path, progress=False)
