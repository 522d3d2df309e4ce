"""The concepts that a model was trained with: by text, by vector, and by what a person types."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from rapidfuzz import fuzz, process

from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import RequestError

SUGGESTED = 3
"""Known concepts that the answer to an unknown one names."""


class Concepts:
    """A bank of concepts, searched in three ways."""

    def __init__(self, texts: np.ndarray, bank: np.ndarray) -> None:
        """Index texts ``(n,)`` and their unit rows, float32 ``(n, 768)``."""
        self.texts: list[str] = [str(text) for text in texts]
        self.bank = bank
        self._index = BankIndex(bank, "auto")
        self._row_of = {text: row for row, text in enumerate(self.texts)}

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Return the bank rows of texts, int64 ``(n,)``.

        Raises:
            RequestError: a text is unknown; names it and the nearest known ones.
        """
        try:
            return np.array([self._row_of[text] for text in texts], dtype=np.int64)
        except KeyError as error:
            raise self._unknown(str(error.args[0])) from None

    def _unknown(self, text: str) -> RequestError:
        near = ", ".join(repr(known) for known in self.suggest(text, SUGGESTED))
        return RequestError(
            f"concept {text[:80]!r} is not among this model's {len(self.texts):,} concepts; "
            f"near ones are {near[:300]}. GET /v1/concepts?q=… looks concepts up"
        )

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return cosines and rows ``(n, k)`` of the concepts nearest to unit rows ``(n, 768)``."""
        return self._index.search(vectors, k)

    @cached_property
    def _lower(self) -> list[str]:
        return [text.casefold() for text in self.texts]

    def suggest(self, typed: str, limit: int) -> list[str]:
        """Return at most ``limit`` concepts for what a person typed, the likeliest first.

        First come concepts that begin with it, then those in which a word does, then those that
        contain it, then similar ones.
        """
        wanted = typed.casefold().strip()
        ranked: list[tuple[int, int, int]] = []
        for row, text in enumerate(self._lower):
            at = text.find(wanted)
            if at >= 0:
                kind = 0 if at == 0 else 1 if text[at - 1] in " -_(" else 2
                ranked.append((kind, len(text), row))
        found = [row for _, _, row in sorted(ranked)[:limit]]
        if len(found) < limit and wanted:
            similar = process.extract(wanted, self._lower, scorer=fuzz.QRatio, limit=2 * limit)
            found += [row for _, _, row in similar if row not in found]
        return [self.texts[row] for row in found[:limit]]
