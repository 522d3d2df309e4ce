"""A small knowledge graph in WN18RR's files, and an encoder whose tokens are words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ocp_mamba.config import D_VECTOR
from ocp_mamba.embeddings.tokens import MOST_TOKENS


def write_graph(folder: Path, parents: int = 12, children: int = 8) -> Path:
    """A root, parents below it, and children below them whose definitions name the parent.

    Two children of each parent are held out, one in dev and one in test. Each child is also a
    meronym of its group, so that walks lead to its parent.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = ["000\tentity, that which exists"]
    splits: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for p in range(parents):
        parent, group = f"p{p:02d}", f"g{p:02d}"
        texts.append(f"{parent}\tword{parent}, a kind of entity")
        texts.append(f"{group}\tgroup{group}, a group of things")
        splits["train"].append(f"{parent}\t_hypernym\t000")
        for c in range(children):
            child = f"c{p:02d}{c}"
            texts.append(f"{child}\tword{child}, any word{parent} of the sort {c}")
            split = {0: "dev", 1: "test"}.get(c, "train")
            splits[split].append(f"{child}\t_hypernym\t{parent}")
            splits["train"].append(f"{group}\t_member_meronym\t{child}")
    (folder / "entity2text.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    for name, lines in splits.items():
        (folder / f"{name}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


class WordTokens:
    """A `TokenEncoder`: each word is a token, whose vector is drawn from a hash of the word."""

    name, precision = "words", "float32"

    def __init__(self, weight_hash: str = "2" * 64) -> None:
        self.weight_hash = weight_hash
        self.encoded = 0

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        return [self._tokens(text) for text in texts]

    def _tokens(self, text: str) -> list[int]:
        words = text.replace(",", " ,").split()[: MOST_TOKENS - 2]
        digests = [hashlib.sha256(word.encode()).digest()[:4] for word in words]
        return [0, *(int.from_bytes(digest) for digest in digests), 1]

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.encoded += len(tokens)
        return [
            np.stack([np.random.default_rng(t).standard_normal(D_VECTOR) for t in text]).astype(
                np.float16
            )
            for text in tokens
        ]
