"""Train from a folder of shards larger than memory: resident memory, and speed beside in-memory.

    python -m benchmarks.shards --gigabytes 20 --write docs/scale.md

makes the dataset (and deletes it afterwards), drops it from the page cache, and then takes training
steps on it and on a small dataset in memory by turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tabulate import tabulate

from ocp_mamba.config import D_VECTOR, MODEL_SIZES, TrainConfig
from ocp_mamba.data import Dataset, load_dataset
from ocp_mamba.data.batches import Batch, batches
from ocp_mamba.data.file import SCHEMA_VERSION
from ocp_mamba.data.shard_files import write_shards
from ocp_mamba.model import OCPMambaLVM
from ocp_mamba.train import TrainState, make_optimizer, resolve_precision, train_step

LENGTH = 9
PIECE = 65_536
CHAIN_SHARE = 0.05
TRAIN_SHARE = 0.98
CHAIN_BYTES = LENGTH * 4 + 8 + 3
BEGIN, END = "<!-- benchmarks/shards.py: begin -->", "<!-- benchmarks/shards.py: end -->"
META = {
    "schema_version": SCHEMA_VERSION,
    "encoder": {"name": "random", "weight_hash": "0" * 64},
    "sources": ["random"],
}


def bank_pieces(rows: int) -> Iterator[np.ndarray]:
    """Unit rows: one random block, its columns rolled on for each next one."""
    rng = np.random.default_rng(0)
    block = rng.standard_normal((PIECE, D_VECTOR), dtype=np.float32)
    block /= np.linalg.norm(block, axis=1, keepdims=True)
    for number, start in enumerate(range(0, rows, PIECE)):
        yield np.roll(block, number * 7, axis=1)[: rows - start]


def splits(drawn: np.ndarray, train: float) -> np.ndarray:
    """Split of each chain from a number in 0..1 drawn for it."""
    return ((drawn >= train) + (drawn >= (1 + train) / 2).astype(np.uint8)).astype(np.uint8)


def make(folder: Path, gigabytes: float, train: float = TRAIN_SHARE) -> None:
    """Write a folder of random chains; ``train`` is train's share, val and test halve the rest."""
    rows = int(gigabytes * 1e9 * (1 - CHAIN_SHARE) / (D_VECTOR * 4))
    n_chains = int(gigabytes * 1e9 * CHAIN_SHARE / CHAIN_BYTES)
    rng = np.random.default_rng(1)

    def by_chain(make_piece):
        for start in range(0, n_chains, 1 << 20):
            yield make_piece(start, min(1 << 20, n_chains - start))

    arrays = {
        "bank": bank_pieces(rows),
        "texts": (np.arange(s, min(s + PIECE, rows)).astype("<U8") for s in range(0, rows, PIECE)),
        "chain_values": by_chain(lambda s, n: rng.integers(0, rows, n * LENGTH, dtype=np.int32)),
        "chain_offsets": (
            piece
            for pieces in (
                iter([np.zeros(1, np.int64)]),
                by_chain(lambda s, n: (s + 1 + np.arange(n, dtype=np.int64)) * LENGTH),
            )
            for piece in pieces
        ),
        "chain_source": by_chain(lambda s, n: np.zeros(n, np.uint8)),
        "split": by_chain(lambda s, n: splits(rng.random(n), train)),
        "chain_first": by_chain(lambda s, n: np.full(n, 2, np.uint8)),
    }
    write_shards(folder, arrays, META, bank_dtype="float32")


def forget(folder: Path) -> None:
    """Drop a folder's files from the page cache."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident() -> dict[str, float]:
    """GB of this process: all, anonymous, and of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {
        name: int(fields[name].split()[0]) * 1024e-9 for name in ("VmRSS", "RssAnon", "RssFile")
    }


def measure(folder: Path, steps: int, size: str) -> list[list[object]]:
    torch.manual_seed(0)
    model = OCPMambaLVM(MODEL_SIZES[size]).train()
    config = TrainConfig(batch_size=64)
    precision = resolve_precision("auto", torch.device("cpu"))
    state = TrainState(model, make_optimizer(model, config), precision)
    small = folder.with_name(folder.name + ".small")
    make(small, 0.2)
    in_memory = Dataset(**{
        name: np.array(value) if isinstance(value := getattr(load_dataset(small), name), np.ndarray)
        else value
        for name in Dataset.__dataclass_fields__
    })  # fmt: skip
    shutil.rmtree(small)
    banks = {"in memory": torch.from_numpy(in_memory.bank)}
    passes = {"in memory": batches(in_memory, "train", 64, bank=banks["in memory"], shuffle_seed=0)}
    seconds: dict[str, list[float]] = {"in memory": [], "mapped": []}

    def step(name: str) -> None:
        started = time.perf_counter()
        batch: Batch = next(passes[name])
        train_step(state, batch, banks[name], 1e-4, config)
        seconds[name].append(time.perf_counter() - started)

    for _ in range(5):
        step("in memory")
    before = most = resident()
    opened = time.perf_counter()
    data = load_dataset(folder)
    banks["mapped"] = torch.from_numpy(data.bank)
    passes["mapped"] = batches(data, "train", 64, bank=banks["mapped"], shuffle_seed=0)
    step("mapped")  # with it comes the order of all chains
    opened = time.perf_counter() - opened
    for times in seconds.values():
        times.clear()
    for _ in range(steps):
        step("mapped")
        step("in memory")
        now = resident()
        most = {name: max(most[name], now[name]) for name in now}
    size_gb = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    mapped, memory = (statistics.mean(seconds[name]) for name in ("mapped", "in memory"))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        ["dataset on disk", f"{size_gb:.1f} GB"],
        ["concepts, chains", f"{data.n_concepts:,}, {data.n_chains:,}"],
        ["model, processor threads", f"{size}, {precision}, {torch.get_num_threads()}"],
        ["resident before it was opened", f"{before['VmRSS']:.2f} GB"],
        ["most resident beyond that, all", f"{most['VmRSS'] - before['VmRSS']:.2f} GB"],
        ["  of it anonymous", f"{most['RssAnon'] - before['RssAnon']:.2f} GB"],
        ["  of it pages of the files", f"{most['RssFile'] - before['RssFile']:.2f} GB"],
        ["opening, the order of all chains, first step", f"{opened:.1f} s"],
        [f"step, mapped, mean of {steps}", f"{mapped * 1e3:.0f} ms"],
        [f"step, in memory (a 0.2 GB dataset), mean of {steps}", f"{memory * 1e3:.0f} ms"],
        ["throughput, mapped / in memory", f"{memory / mapped:.3f}"],
        ["the same by medians", f"{middle['in memory'] / middle['mapped']:.3f}"],
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("shards-benchmark"))
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--size", default="small", choices=list(MODEL_SIZES))
    parser.add_argument("--write", type=Path, help="a document with the markers")
    options = parser.parse_args()
    started = time.perf_counter()
    try:
        make(options.folder, options.gigabytes)
        made = time.perf_counter() - started
        forget(options.folder)
        rows = measure(options.folder, options.steps, options.size)
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)
    rows.append(["making the dataset", f"{made:.0f} s"])
    table = tabulate(rows, headers=["figure", "measured"], tablefmt="github")
    print(table)
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        head, rest = text.split(BEGIN)
        tail = rest.split(END)[1]
        options.write.write_text(f"{head}{BEGIN}\n{table}\n{END}{tail}", encoding="utf-8")


if __name__ == "__main__":
    main()
