"""Retrieval: exact search against the matrix product that it cannot do without, and larger banks.

Larger banks are the shipped one's rows with noise, many near each: clusters, as concepts are. A
query is a row with noise at a cosine of 0.9, as far from it as a good prediction is.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks import timing
from benchmarks.frame import ROOT, Cell
from benchmarks.run import Run
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
    centers, rows = shipped_bank(), np.empty((n, 768), np.float32)
    for start in range(0, n, BLOCK):
        ids = np.arange(start, min(n, start + BLOCK)) % len(centers)
        rows[start : start + BLOCK] = near(centers[ids], COPY_COSINE, rng)
    return rows


def against_the_product(run: Run) -> Callable[[], None]:
    """Declare exact search over the shipped bank by batch size; returns what measures it."""
    bank, rng = shipped_bank(), np.random.default_rng(0)
    batches = BATCHES[:2] if run.quick else BATCHES
    table = run.table(
        f"The {NEAREST} nearest of {len(bank):,} rows", [{"queries": n} for n in batches]
    )
    goals = [
        run.goal(f"{n:,} queries: exact search within {PRODUCT_GOAL} times the product")
        for n in batches
    ]

    def measure() -> None:
        index, columns = BankIndex(bank), torch.from_numpy(bank).T
        for n, row, goal in zip(batches, table.rows, goals, strict=True):
            queries = near(bank[rng.integers(0, len(bank), n)], QUERY_COSINE, rng)
            tensor = torch.from_numpy(queries)
            times = run.rounds(
                {
                    OURS: lambda q=queries: index.search(q, NEAREST),
                    PRODUCT: lambda t=tensor: t @ columns,
                    TOPK: lambda t=tensor: (t @ columns).topk(NEAREST),
                },
                n_rounds=3 if run.quick else 40,
                limit_s=5 if run.quick else 25,
            )
            if len(times) < 3:
                return
            ratio = times[OURS].best / times[PRODUCT].best
            cells: dict[str, Cell] = {f"{name}, ms": 1e3 * t.best for name, t in times.items()}
            run.fill(row, cells | {"exact over product": ratio})
            run.reach(goal, f"{ratio:.2f}", ratio <= PRODUCT_GOAL)

    return measure


def one_index(run: Run, kind: str, bank: np.ndarray, queries: np.ndarray) -> dict[str, Cell]:
    """Build an index and search it: seconds, memory, milliseconds a query, recall."""
    built: list[BankIndex] = []
    started = time.perf_counter()
    peak = timing.peak_mib(lambda: built.append(BankIndex(bank, kind)))
    build_s = time.perf_counter() - started
    index = built[0]
    times = run.rounds(
        {
            "one": lambda: index.search(queries[:1], NEAREST),
            "many": lambda: index.search(queries[:64], NEAREST),
        },
        n_rounds=10,
        limit_s=10,
    )
    return {
        "build s": build_s,
        "bank MiB": round(bank.nbytes / timing.MIB),
        "peak MiB beyond it": None if peak is None else round(peak),
        "ms a query, alone": 1e3 * times["one"].best if "one" in times else None,
        "ms a query, of 64": 1e3 * times["many"].best / 64 if "many" in times else None,
        "recall@1": index.recall_at_1(queries),
    }


def sizes(run: Run, wanted: dict[int, tuple[str, ...]], n_queries: int) -> Callable[[], None]:
    """Declare each kind of index over banks of some sizes; returns what measures them."""
    table = run.table(
        "Larger banks",
        [{"rows": n, "index": kind} for n, kinds in wanted.items() for kind in kinds],
        f"Recall against exact search over {n_queries:,} queries. An approximate index keeps the "
        "exact one beside it, for queries that it cannot fill and for its recall: its memory is "
        "that of both.",
    )
    goals = {
        (n, kind): run.goal(f"{n:,} rows, {kind}: recall@1 at least {RECALL}")
        for n, kinds in wanted.items()
        for kind in kinds
        if kind != "exact"
    }
    rows = {(row["rows"], row["index"]): row for row in table.rows}

    def measure() -> None:
        rng = np.random.default_rng(0)
        for n, kinds in wanted.items():
            if run.over():
                return
            bank = bank_of(n, rng)
            queries = near(bank[rng.choice(n, n_queries, replace=False)], QUERY_COSINE, rng)
            for kind in kinds:
                if run.over():
                    return
                print(f"{n:,} rows, {kind}", flush=True)
                cells = one_index(run, kind, bank, queries)
                run.fill(rows[n, kind], cells)
                if (n, kind) in goals:
                    recall = float(cells["recall@1"] or 0)
                    run.reach(goals[n, kind], f"{recall:.4f}", recall >= RECALL)

    return measure


def main(run: Run) -> None:
    """Compare exact search with the product, and the kinds of index up to 100,000 rows."""
    product = against_the_product(run)
    wanted: dict[int, tuple[str, ...]] = {
        10_000: ("exact", "ivf", "hnsw"),
        100_000: ("exact", "ivf"),
    }
    if run.quick:
        wanted = {5_000: ("exact", "ivf")}
    larger = sizes(run, wanted, 100 if run.quick else 1000)
    product()
    larger()
