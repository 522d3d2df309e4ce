"""Encoders for tests: a tiny sentence-transformers folder, and a counting stand-in."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from ocp_mamba.config import D_VECTOR


def save_tiny_encoder(folder: Path, *, width: int = D_VECTOR, seed: int = 0) -> Path:
    """Save a one-layer MPNet with random weights and a vocabulary of letters."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizerFast

    inner = folder / "transformer"
    inner.mkdir(parents=True)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789é"
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    vocab = [*special, *letters, *(f"##{letter}" for letter in letters)]
    (inner / "vocab.txt").write_text("\n".join(vocab), encoding="utf-8")
    MPNetTokenizerFast(vocab=str(inner / "vocab.txt")).save_pretrained(inner)
    torch.manual_seed(seed)
    config = MPNetConfig(
        vocab_size=len(vocab),
        hidden_size=width,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=130,
    )
    MPNetModel(config).save_pretrained(inner)
    transformer = Transformer(str(inner))
    model = SentenceTransformer(modules=[transformer, Pooling(width)], device="cpu")
    model.save(str(folder / "tiny-encoder"))
    return folder / "tiny-encoder"


class CountingEncoder:
    """Vectors drawn from a hash of each text; counts the texts and can fail after some."""

    name = "counting"
    dimension = D_VECTOR

    def __init__(self, weight_hash: str = "1" * 64, fail_after: int | None = None) -> None:
        self.weight_hash = weight_hash
        self.encoded = 0
        self._fail_after = fail_after

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        if self._fail_after is not None and self.encoded >= self._fail_after:
            raise KeyboardInterrupt
        self.encoded += len(texts)
        rows = np.zeros((len(texts), D_VECTOR), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            seed = hashlib.sha256(f"{self.weight_hash} {text.lower()}".encode()).digest()[:8]
            row[:] = np.random.default_rng(int.from_bytes(seed)).standard_normal(D_VECTOR)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)
