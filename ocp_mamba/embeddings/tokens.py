"""The token vectors of texts, kept in files from which a killed run goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from ocp_mamba.errors import EncoderError
from ocp_mamba.system.files import atomic_write

SHARD = 1024
"""Texts of a file of the cache: what a killed run loses at most."""

MOST_TOKENS = 64
"""Tokens of a text that are encoded; of WN18RR's texts 0.2% are longer."""

TOKENS_AT_ONCE = 1536
TO_NAME = ", "
"""What stands between a name and its definition."""


class TokenEncoder(Protocol):
    """Anything that gives a vector for each token of a text.

    Attributes:
        name: public name of the model.
        weight_hash: hash of its weights.
        precision: ``bfloat16`` or ``float32``, in which it computes.
    """

    name: str
    weight_hash: str
    precision: str

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, at most `MOST_TOKENS`, with those of its two ends."""
        ...

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the vectors of each text's tokens, float16 ``(tokens, D)``."""
        ...


@dataclass(frozen=True)
class TokenVectors:
    """The token vectors of E texts, in files that are mapped into memory.

    Attributes:
        shards: float16 ``(tokens of the shard, D)``, mapped.
        starts: int64 ``(E + 1,)``, number of the first token of each text, counted over all shards.
        shard_starts: int64 ``(shards + 1,)``, number of the first token of each shard.
        name_lengths: int64 ``(E,)``, tokens of each text's name, without those of its ends.
    """

    shards: Sequence[np.ndarray]
    starts: np.ndarray
    shard_starts: np.ndarray
    name_lengths: np.ndarray

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        """Return the vectors of a text's tokens, float16 ``(tokens, D)``."""
        shard = row // SHARD
        first = self.shard_starts[shard]
        return self.shards[shard][self.starts[row] - first : self.starts[row + 1] - first]


class TransformerTokens:
    """A `TokenEncoder` that uses the transformer of a sentence-transformers model."""

    def __init__(self, name_or_folder: str, precision: str = "bfloat16") -> None:
        """Load the model; it computes in bfloat16, 2.3 times as fast as float32 on such CPUs.

        Raises:
            EncoderError: see `SentenceTransformerEncoder`.
        """
        import torch

        from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder

        encoder = SentenceTransformerEncoder(name_or_folder)
        self.name, self.weight_hash, self.precision = encoder.name, encoder.weight_hash, precision
        self._model: Any = encoder.transformer.to(getattr(torch, precision))
        self._tokenizer: Any = encoder.tokenizer

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens of each text, with those of its two ends."""
        cut: list[list[int]] = self._tokenizer(
            list(texts), truncation=True, max_length=MOST_TOKENS
        )["input_ids"]
        return cut

    def encode_tokens(self, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
        """Return the vectors of each text's tokens, float16 ``(tokens, 768)``."""
        import torch

        longest = max(map(len, tokens))
        ids = torch.full((len(tokens), longest), self._tokenizer.pad_token_id)
        mask = torch.zeros((len(tokens), longest), dtype=torch.long)
        for row, text in enumerate(tokens):
            ids[row, : len(text)], mask[row, : len(text)] = torch.tensor(text), 1
        device = self._model.device
        with torch.inference_mode():
            hidden = self._model(
                input_ids=ids.to(device), attention_mask=mask.to(device)
            ).last_hidden_state
        vectors = hidden.half().cpu().numpy()
        return [vectors[row, : len(text)] for row, text in enumerate(tokens)]


def cache_key(encoder: TokenEncoder, texts: Sequence[str]) -> str:
    """Return the name of the folder that the token vectors of texts by an encoder are kept in."""
    facts = [encoder.weight_hash, encoder.precision, MOST_TOKENS, SHARD, list(texts)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def encode_tokens(
    encoder: TokenEncoder, texts: Sequence[str], cache: Path, *, progress: bool = True
) -> TokenVectors:
    """Encode texts in shards that stay on the disk; those that are there are not encoded again.

    Args:
        encoder: gives the vectors.
        texts: what to encode.
        cache: the folder that has a folder for each encoder and set of texts, see `cache_key`.
        progress: show a bar.

    Raises:
        EncoderError: a shard in the cache is damaged, or a vector is not finite.
        OSError: the folder cannot be written.
    """
    folder = cache / cache_key(encoder, texts)
    folder.mkdir(parents=True, exist_ok=True)
    tokens = encoder.tokenize(texts)
    names = encoder.tokenize([text.split(TO_NAME, 1)[0] for text in texts])
    shards = []
    with tqdm(total=len(texts), desc="token vectors", unit="text", disable=not progress) as bar:
        for start in range(0, len(texts), SHARD):
            part = tokens[start : start + SHARD]
            path = folder / f"{start:08d}.npy"
            if not path.exists():
                vectors = np.concatenate(_by_length(encoder, part))
                with atomic_write(path) as file:
                    np.save(file, vectors, allow_pickle=False)
            shards.append(_mapped(path, sum(map(len, part))))
            bar.update(len(part))
    counts = np.array([len(shard) for shard in shards])
    return TokenVectors(
        shards,
        np.concatenate([[0], np.cumsum([len(text) for text in tokens])]),
        np.concatenate([[0], np.cumsum(counts)]),
        np.array([_name_tokens(n, t) for n, t in zip(names, tokens, strict=True)]),
    )


def _name_tokens(name: Sequence[int], text: Sequence[int]) -> int:
    """Tokens of the name without its ends; never more than the cut text has, and at least one."""
    return max(1, min(len(name), len(text)) - 2)


def _by_length(encoder: TokenEncoder, tokens: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """The token vectors of texts, encoded in batches of like length."""
    order = sorted(range(len(tokens)), key=lambda row: len(tokens[row]))
    found: list[np.ndarray] = [np.empty((0, 0))] * len(tokens)
    while order:
        batch = [order.pop()]
        while order and (len(batch) + 1) * len(tokens[batch[0]]) <= TOKENS_AT_ONCE:
            batch.append(order.pop())
        vectors = encoder.encode_tokens([tokens[row] for row in batch])
        for row, of_text in zip(batch, vectors, strict=True):
            if not np.isfinite(of_text).all():
                raise EncoderError(f"encoder {encoder.name}: a token vector is NaN or infinite")
            found[row] = of_text
    return found


def _mapped(path: Path, n_tokens: int) -> np.ndarray:
    try:
        shard: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EncoderError(f"{path}: damaged; remove it, and it is encoded again") from error
    if len(shard) != n_tokens or shard.ndim != 2 or shard.dtype != np.float16:
        raise EncoderError(
            f"{path}: {shard.dtype} {shard.shape} found, float16 ({n_tokens}, D) wanted; remove "
            "it, and it is encoded again"
        )
    return shard
