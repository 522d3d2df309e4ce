"""The frozen vectors of a graph's texts: one a concept, and the encoder's token vectors.

Both come of the same pass of the encoder (`embeddings.tokens`): the vector of a concept is the
mean of its token vectors, normalized, as all-mpnet-base-v2 pools them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ocp_mamba.embeddings.tokens import TokenVectors


@dataclass(frozen=True)
class TextVectors:
    """Vectors of E texts.

    Attributes:
        tokens: of each text, float16, on the disk.
        pooled: the concepts' vectors, unit rows, float32 ``(E, D)``.
        names: the same of the tokens of each name alone, in the context of its definition.
        encoder: name and weight hash of the encoder, and its precision.
    """

    tokens: TokenVectors
    pooled: np.ndarray
    names: np.ndarray
    encoder: dict[str, str]

    def sequences(self, entities: np.ndarray, longest: int) -> tuple[Tensor, Tensor]:
        """Return the token vectors of entities, right-padded.

        Args:
            entities: int64 ``(B,)``.
            longest: most tokens of a text that are read, its first ones.

        Returns:
            float32 ``(B, L, D)`` and the lengths ``(B,)``.
        """
        rows = [self.tokens[entity][:longest] for entity in entities.tolist()]
        lengths = torch.tensor([len(row) for row in rows])
        padded = np.zeros((len(rows), int(lengths.max()), self.pooled.shape[1]), dtype=np.float16)
        for line, row in zip(padded, rows, strict=True):
            line[: len(row)] = row
        return torch.from_numpy(padded).float(), lengths


def pool(tokens: TokenVectors) -> tuple[np.ndarray, np.ndarray]:
    """Return `TextVectors.pooled` and `TextVectors.names` of token vectors, float32 ``(E, D)``."""
    pooled, names = [], []
    for row, name_length in enumerate(tokens.name_lengths.tolist()):
        vectors = tokens[row].astype(np.float32)
        pooled.append(_direction(vectors))
        names.append(_direction(vectors[1 : 1 + name_length]))
    return np.stack(pooled), np.stack(names)


def _direction(vectors: np.ndarray) -> np.ndarray:
    mean = vectors.mean(axis=0)
    direction: np.ndarray = mean / np.linalg.norm(mean)
    return direction
