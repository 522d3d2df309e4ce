"""Retrieval: exact search against the matrix product that it cannot do without, and larger banks.

Larger banks are the shipped one's rows with noise, many near each: clusters, as concepts are. A
query is a row with noise at a cosine of 0.9, as far from it as a good prediction is.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks import timing
from benchmarks.frame import ROOT, Cell, Goal, Result, Table
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import RECALL, BankIndex

NEAREST = 10
BATCHES = (1, 64, 6753)
PRODUCT_GOAL = 1.2
COPY_COSINE, QUERY_COSINE = 0.8, 0.9
BLOCK = 50_000
OURS, PRODUCT, TOPK = "exact (FAISS)", "matrix product alone", "matrix product, top 10"


def shipped_bank() -> np.ndarray:
    """Return the default dataset's bank, float32 ``(8948, 768)``."""
    return Dataset.load(ROOT / "ocp_training_9k.npz").bank


def near(rows: np.ndarray, cosine: float, rng: np.random.Generator) -> np.ndarray:
    """Return unit rows at about a cosine from the given ones."""
    noise = rng.standard_normal(rows.shape, dtype=np.float32)
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    made = cosine * rows + np.float32((1 - cosine**2) ** 0.5) * noise
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def bank_of(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return a bank of n rows around the shipped ones, float32 ``(n, 768)``."""
    centres, rows = shipped_bank(), np.empty((n, 768), np.float32)
    for start in range(0, n, BLOCK):
        ids = np.arange(start, min(n, start + BLOCK)) % len(centres)
        rows[start : start + BLOCK] = near(centres[ids], COPY_COSINE, rng)
    return rows


def against_the_product(quick: bool) -> tuple[Table, list[Goal]]:
    """Exact search over the shipped bank, by batch size."""
    bank, rng = shipped_bank(), np.random.default_rng(0)
    index, rows, goals = BankIndex(bank), [], []
    columns = torch.from_numpy(bank).T
    for n in BATCHES[:2] if quick else BATCHES:
        queries = near(bank[rng.integers(0, len(bank), n)], QUERY_COSINE, rng)
        tensor = torch.from_numpy(queries)
        times = timing.rounds(
            {
                OURS: lambda q=queries: index.search(q, NEAREST),
                PRODUCT: lambda t=tensor: t @ columns,
                TOPK: lambda t=tensor: (t @ columns).topk(NEAREST),
            },
            n_rounds=3 if quick else 40,
            limit_s=5 if quick else 25,
        )
        row: dict[str, Cell] = {"queries": n}
        row |= {f"{name}, ms": 1e3 * t.best for name, t in times.items()}
        ratio = times[OURS].best / times[PRODUCT].best
        rows.append(row | {"exact over product": ratio})
        goals.append(
            Goal(
                f"{n:,} queries: exact search within {PRODUCT_GOAL} times the product",
                f"{ratio:.2f}",
                ratio <= PRODUCT_GOAL,
            )
        )
    title = f"The {NEAREST} nearest of {len(bank):,} rows"
    return Table(title, rows), goals


def one_index(kind: str, bank: np.ndarray, queries: np.ndarray) -> dict[str, Cell]:
    """Build an index and search it: seconds, memory, milliseconds a query, recall."""
    built: list[BankIndex] = []
    started = time.perf_counter()
    peak = timing.peak_mib(lambda: built.append(BankIndex(bank, kind)))
    build_s = time.perf_counter() - started
    index = built[0]
    times = timing.rounds(
        {
            "one": lambda: index.search(queries[:1], NEAREST),
            "many": lambda: index.search(queries[:64], NEAREST),
        },
        n_rounds=10,
        limit_s=10,
    )
    return {
        "rows": len(bank),
        "index": kind,
        "build s": build_s,
        "bank MiB": round(bank.nbytes / timing.MIB),
        "peak MiB beyond it": None if peak is None else round(peak),
        "ms a query, alone": 1e3 * times["one"].best,
        "ms a query, of 64": 1e3 * times["many"].best / 64,
        "recall@1": index.recall_at_1(queries),
    }


def sizes(wanted: dict[int, tuple[str, ...]], n_queries: int) -> tuple[Table, list[Goal]]:
    """Each kind of index over banks of some numbers of rows."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Cell]] = []
    for n, kinds in wanted.items():
        bank = bank_of(n, rng)
        queries = near(bank[rng.choice(n, n_queries, replace=False)], QUERY_COSINE, rng)
        for kind in kinds:
            print(f"{n:,} rows, {kind}", flush=True)
            rows.append(one_index(kind, bank, queries))
    note = (
        f"Recall against exact search over {n_queries:,} queries. An approximate index keeps the "
        "exact one beside it, for queries that it cannot fill and for its recall: its memory is "
        "that of both."
    )
    goals = [
        Goal(
            f"{row['rows']:,} rows, {row['index']}: recall@1 at least {RECALL}",
            f"{row['recall@1']:.4f}",
            float(row["recall@1"] or 0) >= RECALL,
        )
        for row in rows
        if row["index"] != "exact"
    ]
    return Table("Larger banks", rows, note), goals


def main(quick: bool) -> Result:
    """Compare exact search with the product, and the kinds of index up to 100,000 rows."""
    product, product_goals = against_the_product(quick)
    wanted = {5_000: ("exact", "ivf")} if quick else {
        10_000: ("exact", "ivf", "hnsw"), 100_000: ("exact", "ivf")
    }  # fmt: skip
    larger, recall_goals = sizes(wanted, 100 if quick else 1000)
    return Result([product, larger], product_goals + recall_goals)
