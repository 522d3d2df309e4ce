"""The nearest bank rows of a vector, by inner product, found with FAISS (the vecRAG lookup)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import faiss

KINDS = ("auto", "exact", "ivf", "hnsw")
EXACT_ROWS = 1_000_000
"""Banks of more rows than this are searched by an IVF where the kind is `auto`."""

ROWS_PER_CELL, CELLS_BY_ROOT, CELLS_PROBED = 40, 4, 16
"""IVF: at most 4 times the square root of the rows as cells, each with the 39 rows or more that
k-means wants."""
KMEANS_ROWS, KMEANS_ROUNDS = 64, 10
"""IVF: the rows per cell that k-means uses, and its rounds; more of either gained nothing at a
million rows."""
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 80, 64
RECALL, SAMPLE, QUERY_COSINE = 0.99, 256, 0.9
"""An approximate index widens its search until it finds this share of a sample's best rows. A query
of the sample is a row with noise, as far from the row as a good prediction is from its target."""
BLAS_QUERIES = 4
"""Fewer queries than this are faster one by one. FAISS itself switches to a matrix product at 167
queries of 768 numbers, and was up to 7 times slower than one with fewer queries."""
TIE = 1e-6


class BankIndex:
    """Inner-product index over a bank of unit rows; ids are bank row numbers.

    ``exact`` compares with every row, and keeps no copy of the bank. ``ivf`` (cells of k-means,
    some of which are searched) and ``hnsw`` (a graph of near rows) copy the bank, are faster on
    large banks and may miss the nearest row. Their search is widened until a sample's recall is
    0.99; `recall_at_1` measures it. ``kind`` is the kind that was chosen, never ``auto``.
    """

    def __init__(self, bank: np.ndarray, kind: str = "exact") -> None:
        """Index ``bank``, float32 ``(n_concepts, D)``; ``auto`` is exact up to a million rows.

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
        if kind == "auto":
            kind = "exact" if len(bank) <= EXACT_ROWS else "ivf"
        self.kind = kind
        self._bank = np.ascontiguousarray(bank)
        self._index: faiss.Index | None = None
        if kind != "exact":
            self._index = _approximate(self._bank, kind)
            self._widen_search(_near(self._bank))

    @property
    def size(self) -> int:
        """Number of rows that a search chooses from."""
        return len(self._bank)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best rows of each query, best first.

        Where an approximate index finds fewer than k rows of a query, the exact search answers it.

        Args:
            queries: float32 ``(n, D)``.
            k: rows wanted; at most the bank's size are returned.

        Returns:
            Inner products float32 ``(n, k)`` and row ids int64 ``(n, k)``.

        Raises:
            ValueError: a query is not finite; FAISS would answer it with any row.
        """
        if not np.isfinite(queries).all():
            raise ValueError("queries hold numbers that are not finite; they have no nearest row")
        k = min(k, self.size)
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if self._index is None:
            return self._exact(queries, k)
        scores, ids = self._index.search(queries, k)
        short = (ids < 0).any(axis=1)
        if short.any():
            scores[short], ids[short] = self._exact(queries[short], k)
        return scores, ids

    def _exact(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Compare with the bank in place; an index of FAISS would copy it."""
        import faiss  # here, because training imports this module where there is no FAISS

        faiss.cvar.distance_compute_blas_threshold = 1 if len(queries) >= BLAS_QUERIES else 2**30
        scores, ids = faiss.knn(queries, self._bank, k, metric=faiss.METRIC_INNER_PRODUCT)
        return scores, ids

    def recall_at_1(self, queries: np.ndarray) -> float:
        """Return the share of queries ``(n > 0, D)`` whose best row is as near as the exact one.

        Inner products within 1e-6 of each other count as equal.
        """
        found, _ = self.search(queries, 1)
        exact, _ = self._exact(np.ascontiguousarray(queries, dtype=np.float32), 1)
        return float((found >= exact - TIE).mean())

    def _widen_search(self, queries: np.ndarray) -> None:
        """Double the rows that a search compares with until a sample's recall suffices."""
        settings: Any = self._index
        name, most = "nprobe", getattr(settings, "nlist", 0)
        if self.kind == "hnsw":
            settings, name, most = settings.hnsw, "efSearch", self.size
        while getattr(settings, name) < most and self.recall_at_1(queries) < RECALL:
            setattr(settings, name, min(2 * getattr(settings, name), most))


def _near(rows: np.ndarray) -> np.ndarray:
    """A sample of rows with noise: the cosine of each to its row is about `QUERY_COSINE`."""
    rng = np.random.default_rng(0)
    chosen = rows[rng.choice(len(rows), min(SAMPLE, len(rows)), replace=False)]
    noise = rng.standard_normal(chosen.shape, dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    near = QUERY_COSINE * chosen + np.sqrt(1 - QUERY_COSINE**2) * noise
    return near.astype(np.float32)


def _approximate(rows: np.ndarray, kind: str) -> faiss.Index:
    import faiss

    width = rows.shape[1]
    if kind == "hnsw":
        graph = faiss.IndexHNSWFlat(width, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
        graph.add(rows)
        return graph
    cells = max(1, min(len(rows) // ROWS_PER_CELL, int(CELLS_BY_ROOT * len(rows) ** 0.5)))
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT)
    index.nprobe = min(CELLS_PROBED, cells)
    index.cp.max_points_per_centroid, index.cp.niter = KMEANS_ROWS, KMEANS_ROUNDS
    index.train(rows)
    index.add(rows)
    return index
