"""vecRAG lookup: the nearest bank rows of a vector, by inner product, through FAISS."""

from __future__ import annotations

import faiss
import numpy as np


class BankIndex:
    """Exact inner-product index over a bank of unit rows; ids are bank row numbers."""

    def __init__(self, bank: np.ndarray) -> None:
        """Index ``bank``, float32 ``(n_concepts, D)``.

        Raises:
            ValueError: the bank is not a non-empty float32 matrix of finite numbers.
        """
        if bank.ndim != 2 or len(bank) == 0 or bank.dtype != np.float32:
            raise ValueError(f"bank must be float32 (n > 0, D), got {bank.dtype} {bank.shape}")
        if not np.isfinite(bank).all():
            raise ValueError("bank has rows that are not finite")
        self._index = faiss.IndexFlatIP(bank.shape[1])
        self._index.add(np.ascontiguousarray(bank))

    @property
    def size(self) -> int:
        """Number of rows that a search chooses from."""
        return int(self._index.ntotal)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best rows of each query, best first.

        Args:
            queries: float32 ``(n, D)``.
            k: rows wanted; at most the bank's size are returned.

        Returns:
            Inner products float32 ``(n, k)`` and row ids int64 ``(n, k)``.

        Raises:
            ValueError: a query is not finite: FAISS would answer it with any row.
        """
        if not np.isfinite(queries).all():
            raise ValueError("queries hold numbers that are not finite; they have no nearest row")
        k = min(k, self.size)
        scores, ids = self._index.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        return scores, ids
