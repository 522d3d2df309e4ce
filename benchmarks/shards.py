"""Train from a folder of shards larger than memory: resident memory, and speed beside in-memory.

    python -m benchmarks.shards --gigabytes 20 --write docs/scale.md

makes the dataset (and deletes it afterwards), runs the whole of ``ocp-mamba train`` on it and on a
small one, its files dropped from the page cache before; and takes training steps on it and on a
small dataset in memory by turns, so that both see the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate

from benchmarks import shards_command as command
from ocp_mamba.config import D_VECTOR, MODEL_SIZES, TrainConfig
from ocp_mamba.data.batches import Batch, batches
from ocp_mamba.data.chunks import count_examples
from ocp_mamba.data.dataset import SCHEMA_VERSION, Dataset
from ocp_mamba.data.fingerprint import fingerprint_of
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards.convert import ArrayWriter, write_shards
from ocp_mamba.data.shards.mapped import checksum, open_shards
from ocp_mamba.model.build import build_model
from ocp_mamba.training.negatives import build_negative_pool
from ocp_mamba.training.state import TrainState
from ocp_mamba.training.trainer import make_optimizer, resolve_precision, train_step

LENGTH = 9
PIECE = 65_536
CHAIN_SHARE = 0.05
TRAIN_SHARE, SHORT_TRAIN = 0.98, 0.00007
STOP_AFTER = 120.0
FEWER = ("--eval-sequences", "1000")
CHAIN_BYTES = LENGTH * 4 + 8 + 3
META_FILE = "meta.json"
RUNS = {
    "whole": "20 GB, to its end",
    "stopped": "20 GB, nearly all of it train, stopped in its first epoch",
    "reference": "30 MB, to its end",
}
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


def make(
    folder: Path, gigabytes: float, train: float = TRAIN_SHARE, chain_share: float = CHAIN_SHARE
) -> None:
    """Write a folder of random chains; ``train`` is train's share, val and test halve the rest."""
    rows = int(gigabytes * 1e9 * (1 - chain_share) / (D_VECTOR * 4))
    n_chains = int(gigabytes * 1e9 * chain_share / CHAIN_BYTES)
    rng = np.random.default_rng(1)

    def by_chain(make_piece):
        for start in range(0, n_chains, 1 << 20):
            yield make_piece(start, min(1 << 20, n_chains - start))

    arrays = {
        "bank": bank_pieces(rows),
        "texts": (np.arange(s, min(s + PIECE, rows)).astype("<U8") for s in range(0, rows, PIECE)),
        "chain_values": by_chain(lambda s, n: rng.integers(0, rows, n * LENGTH, dtype=np.int32)),
        "chain_offsets": (
            chunk
            for chain_chunks in (
                iter([np.zeros(1, np.int64)]),
                by_chain(lambda s, n: (s + 1 + np.arange(n, dtype=np.int64)) * LENGTH),
            )
            for chunk in chain_chunks
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


def measure(folder: Path, steps: int, size: str) -> list[list[object]]:
    torch.manual_seed(0)
    model = build_model(MODEL_SIZES[size]).train()
    config = TrainConfig(batch_size=64)
    precision = resolve_precision("auto", torch.device("cpu"))
    optimizer = make_optimizer(model, config)
    states: dict[str, TrainState] = {}
    forget(folder)
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
        train_step(states[name], batch, banks[name], 1e-4, config)
        seconds[name].append(time.perf_counter() - started)

    negative_pool = build_negative_pool(in_memory, config)
    states["in memory"] = TrainState(model, optimizer, precision, negative_pool)
    for _ in range(5):
        step("in memory")
    opened = time.perf_counter()
    data = load_dataset(folder)
    states["mapped"] = TrainState(model, optimizer, precision, build_negative_pool(data, config))
    banks["mapped"] = torch.from_numpy(data.bank)
    passes["mapped"] = batches(data, "train", 64, bank=banks["mapped"], shuffle_seed=0)
    step("mapped")  # with it comes the order of all chains
    opened = time.perf_counter() - opened
    for times in seconds.values():
        times.clear()
    for _ in range(steps):
        step("mapped")
        step("in memory")
    size_gb = sum(path.stat().st_size for path in folder.iterdir()) / 1e9
    mapped, memory = (statistics.mean(seconds[name]) for name in ("mapped", "in memory"))
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return [
        ["dataset on disk", f"{size_gb:.1f} GB"],
        ["concepts, chains", f"{data.n_concepts:,}, {data.n_chains:,}"],
        ["model, processor threads", f"{size}, {precision}, {torch.get_num_threads()}"],
        ["opening, the order of all chains, first step", f"{opened:.1f} s"],
        [f"step, mapped, mean of {steps}", f"{mapped * 1e3:.0f} ms"],
        [f"step, in memory (a 0.2 GB dataset), mean of {steps}", f"{memory * 1e3:.0f} ms"],
        ["throughput, mapped / in memory", f"{memory / mapped:.3f}"],
        ["the same by medians", f"{middle['in memory'] / middle['mapped']:.3f}"],
        ["load average of the machine", f"{os.getloadavg()[1]:.1f}"],
    ]  # fmt: skip


def resplit(folder: Path, train: float) -> None:
    """Deal the chains of a folder out anew, ``train`` of them to train; see `make`."""
    listed = json.loads((folder / META_FILE).read_text())
    listed.pop("checksum", None)
    rng, writer = np.random.default_rng(2), ArrayWriter(folder, "split", np.dtype(np.uint8), ())
    rows = listed["arrays"]["split"]["rows"]
    for start in range(0, rows, 1 << 20):
        writer.write(splits(rng.random(min(1 << 20, rows - start)), train))
    listed["arrays"]["split"] = writer.close()
    (folder / META_FILE).write_text(json.dumps(listed))
    listed["fingerprint"] = fingerprint_of(open_shards(folder), np.ascontiguousarray)
    listed["checksum"] = checksum(listed)
    (folder / META_FILE).write_text(json.dumps(listed))


def run_command(folder: Path, *flags: str, stop_after: float = 0.0) -> dict[str, Any]:
    """Run the whole command on a folder that is not in the page cache."""
    forget(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        stages = command.train(folder, Path(work), *flags, stop_after=stop_after)
        lines = (Path(work) / "log.txt").read_text().splitlines()
    counts = count_examples(load_dataset(folder))
    return {
        "said": next((line for line in lines if line.startswith("Too large")), "evaluated whole"),
        "sequences": counts,
        "load": os.getloadavg()[1],
        "stages": [asdict(stage) for stage in stages],
    }


def reference(folder: Path) -> dict[str, Any]:
    """The same command on a dataset of 30 MB, which is evaluated whole."""
    small = folder.with_name(folder.name + ".small")
    try:
        make(small, 0.03, 0.7, chain_share=0.003)
        return run_command(small)
    finally:
        shutil.rmtree(small, ignore_errors=True)


def whole(folder: Path) -> dict[str, Any]:
    """The command to its end: few chains train, and the others are val and test."""
    resplit(folder, SHORT_TRAIN)
    return run_command(folder)


def stopped(folder: Path) -> dict[str, Any]:
    """The command with nearly all chains in train, stopped some way into the first epoch."""
    resplit(folder, TRAIN_SHARE)
    return run_command(folder, *FEWER, stop_after=STOP_AFTER)


def stage_table(found: dict[str, Any]) -> str:
    """Seconds and memory of each stage of each run of the command."""
    rows: list[list[str]] = []
    for part, title in RUNS.items():
        stages = found[part]["stages"] if part in found else []
        for stage in stages:
            most = (f"{stage[name]:.2f} GB" for name in ("anonymous", "files", "both"))
            rows.append([title, stage["name"], f"{stage['seconds']:.0f} s", *most])
            title = ""
        if stages:
            most = (f"{max(s[n] for s in stages):.2f} GB" for n in ("anonymous", "files", "both"))
            said = f"(load average {found[part]['load']:.1f})"
            rows.append(
                ["", f"**most** {said}", f"{sum(s['seconds'] for s in stages):.0f} s", *most]
            )
    headers = ["run", "stage", "time", "anonymous", "pages of files", "both at once"]
    return tabulate(rows, headers=headers, tablefmt="github")


def notes(found: dict[str, Any]) -> str:
    """What each run of the command was evaluated on, in its own words."""
    lines = []
    for part, title in RUNS.items():
        if part in found:
            counts = ", ".join(f"{k} {n:,}" for k, n in found[part]["sequences"].items())
            lines.append(f"- {title}: sequences {counts}. {found[part]['said']}")
    return "\n".join(lines)


def write(path: Path, found: dict[str, Any]) -> None:
    """Put the tables between the markers of a document."""
    text = path.read_text(encoding="utf-8")
    tables = {"command": f"{stage_table(found)}\n\n{notes(found)}"}
    if "steps" in found:
        tables["steps"] = tabulate(found["steps"], ["figure", "measured"], tablefmt="github")
    for name, table in tables.items():
        begin, end = (f"<!-- benchmarks/shards.py, {name}: {edge} -->" for edge in ("begin", "end"))
        head, rest = text.split(begin)
        text = f"{head}{begin}\n{table}\n{end}{rest.split(end)[1]}"
    path.write_text(text, encoding="utf-8")


def main() -> None:
    parts: dict[str, Callable[[], Any]] = {
        "reference": lambda: reference(options.folder),
        "whole": lambda: whole(options.folder),
        "stopped": lambda: stopped(options.folder),
        "steps": lambda: measure(options.folder, options.steps, options.size),
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("shards-benchmark"))
    parser.add_argument("--gigabytes", type=float, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--size", default="small", choices=list(MODEL_SIZES))
    parser.add_argument("--only", choices=list(parts), action="append")
    parser.add_argument("--keep", action="store_true", help="use a folder that is there; keep it")
    parser.add_argument("--write", type=Path, help="a document with the markers")
    options = parser.parse_args()
    results = options.folder.with_name(options.folder.name + ".json")
    found = json.loads(results.read_text()) if options.keep and results.exists() else {}
    try:
        if not (options.keep and options.folder.exists()):
            make(options.folder, options.gigabytes)
        for name in options.only or parts:
            found[name] = parts[name]()
            results.write_text(json.dumps(found))
            print(json.dumps({name: found[name]}, indent=1), flush=True)
    finally:
        if not options.keep:
            shutil.rmtree(options.folder, ignore_errors=True)
            results.unlink(missing_ok=True)
    print(stage_table(found))
    if options.write:
        write(options.write, found)


if __name__ == "__main__":
    main()
