"""vecRAG lookup: the nearest bank rows of a vector, by inner product, through FAISS."""

from __future__ import annotations

import faiss
import numpy as np

KINDS = ("exact", "ivf", "hnsw")

ROWS_PER_CELL, CELLS_PROBED = 40, 16
"""IVF: k-means wants 39 rows a cell or more (FAISS's default); a search looks into 16 cells."""
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 64
TIE = 1e-6


class BankIndex:
    """Inner-product index over a bank of unit rows; ids are bank row numbers.

    ``exact`` compares with every row. ``ivf`` (cells of k-means, some of which are searched) and
    ``hnsw`` (a graph of near rows) are quicker on large banks and may miss the nearest row:
    `recall_at_1` says how often.
    """

    def __init__(self, bank: np.ndarray, kind: str = "exact") -> None:
        """Index ``bank``, float32 ``(n_concepts, D)``.

        Raises:
            ValueError: the bank is not a non-empty float32 matrix of finite numbers, or ``kind`` is
                none of `KINDS`.
        """
        if bank.ndim != 2 or len(bank) == 0 or bank.dtype != np.float32:
            raise ValueError(f"bank must be float32 (n > 0, D), got {bank.dtype} {bank.shape}")
        if not np.isfinite(bank).all():
            raise ValueError("bank has rows that are not finite")
        if kind not in KINDS:
            raise ValueError(f"index {kind!r} is unknown; choose one of {', '.join(KINDS)}")
        self.kind = kind
        rows = np.ascontiguousarray(bank)
        self._exact = faiss.IndexFlatIP(bank.shape[1])
        self._exact.add(rows)
        self._index = self._exact if kind == "exact" else _approximate(rows, kind)

    @property
    def size(self) -> int:
        """Number of rows that a search chooses from."""
        return int(self._exact.ntotal)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best rows of each query, best first.

        A query for which an approximate index finds fewer than k rows is answered exactly.

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
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        scores, ids = self._index.search(queries, k)
        short = (ids < 0).any(axis=1)
        if short.any():
            scores[short], ids[short] = self._exact.search(queries[short], k)
        return scores, ids

    def recall_at_1(self, queries: np.ndarray) -> float:
        """Share of queries ``(n > 0, D)`` whose best row is as near as the exact one, to 1e-6."""
        found, _ = self.search(queries, 1)
        exact, _ = self._exact.search(np.ascontiguousarray(queries, dtype=np.float32), 1)
        return float((found >= exact - TIE).mean())


def _approximate(rows: np.ndarray, kind: str) -> faiss.Index:
    width = rows.shape[1]
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
        graph.add(rows)
        return graph
    cells = max(1, len(rows) // ROWS_PER_CELL)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = CELLS_PROBED
    index.train(rows)
    index.add(rows)
    return index
