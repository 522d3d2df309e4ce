"""Whole files of every kind that the fuzz campaign damages and forges, made on the spot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ocp_mamba.baselines.checkpoint import save_baseline
from ocp_mamba.baselines.neural import GRUBaseline, TransformerBaseline
from ocp_mamba.config import D_TMD, D_VECTOR, ModelConfig
from ocp_mamba.data.dataset import SCHEMA_VERSION, Dataset
from ocp_mamba.data.shards.convert import shard
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import save_checkpoint

N_CONCEPTS, N_CHAINS = 12, 16
ENCODER = {"name": "random", "weight_hash": "0" * 64}
SHAPE = {"d_model": 32, "n_layers": 2, "headdim": 16}

TOML = """[model]
n_layers = 4
d_state = 32
dropout = 0.1
relations = ["is a", "part of"]

[train]
batch_size = 32
lr = 0.002
precision = "float32"
seed = 3
curriculum = 0.5
"""
YAML = """model:
  n_layers: {type: int, low: 2, high: 8}
  dropout: {type: float, low: 0.0, high: 0.3}
train:
  lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  batch_size: {type: categorical, choices: [16, 32, 64]}
  infonce_candidates: {type: categorical, choices: [batch, train]}
"""


def make_seeds(folder: Path) -> dict[str, list[Path]]:
    """Write whole files into a folder; returns them by kind."""
    torch.manual_seed(0)
    makers = {
        "npz": _datasets, "legacy": _older, "shards": _shards, "pt": _checkpoints,
        "chains": _chains, "queue": _queues, "toml": _settings, "yaml": _spaces,
    }  # fmt: skip
    made = {}
    for kind, make in makers.items():
        (folder / kind).mkdir()
        made[kind] = make(folder / kind)
    return made


def dataset(seed: int, *, tmd: bool, relations: bool, **replaced: Any) -> Dataset:
    """Return a small dataset of random vectors."""
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal((N_CONCEPTS, D_VECTOR))
    lengths = rng.integers(3, 8, N_CHAINS)
    n_values = int(lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    meta: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION, "encoder": ENCODER, "sources": ["wordnet", "swo"],
        "licence": "none", "seed": seed,
    }  # fmt: skip
    fields: dict[str, Any] = {
        "bank": (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32),
        "texts": np.array([f"concept é {i}" for i in range(N_CONCEPTS)]),
        "chain_values": rng.integers(0, N_CONCEPTS, n_values).astype(np.int32),
        "chain_offsets": offsets,
        "chain_source": rng.integers(0, 2, N_CHAINS).astype(np.uint8),
        "chain_tmd": rng.standard_normal((N_CHAINS, D_TMD)).astype(np.float32) if tmd else None,
        "split": (np.arange(N_CHAINS) % 3).astype(np.uint8),
        "meta": meta,
        "chain_first": np.full(N_CHAINS, 2, np.uint8),
    }
    if relations:
        known = rng.integers(0, 3, n_values).astype(np.uint16)
        known[offsets[:-1]] = 0
        fields["chain_relation"] = known
        fields["chain_confidence"] = (rng.random(n_values) * (known > 0)).astype(np.float32)
        meta["relations"] = ["is a", "part of"]
    return Dataset(**fields | replaced)


def _datasets(folder: Path) -> list[Path]:
    paths = [folder / f"{i}.npz" for i in range(3)]
    dataset(0, tmd=True, relations=False).save(paths[0])
    dataset(1, tmd=False, relations=True).save(paths[1])
    first = np.ones(N_CHAINS, np.uint8)
    dataset(2, tmd=True, relations=True, bank_dtype="float16", chain_first=first).save(paths[2])
    return paths


def _shards(folder: Path) -> list[Path]:
    return [_sharded(path) for path in _datasets(folder)]


def _sharded(path: Path) -> Path:
    shard(path, path.with_suffix(""))
    path.unlink()
    return path.with_suffix("")


def _older(folder: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((9, 3, D_VECTOR)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=2, keepdims=True)
    padded, target = rows.copy(), rows[::-1, 0].copy()
    padded[4:, 2] = 0
    masks = np.arange(3) < np.array([3, 2, 3, 1, 3, 3, 2, 3, 3])[:, None]
    codes = rng.standard_normal((9, D_TMD)).astype(np.float32)
    files: dict[str, Mapping[str, Any]] = {
        "padded": {
            f"{split}_{key}": array
            for split in ("train", "val", "test")
            for key, array in (("context", padded), ("target", target), ("tmd", codes))
        },
        "masked": {"contexts": rows, "targets": target, "masks": masks},
        "fused": {
            "context": np.concatenate([padded, np.zeros((9, 3, D_TMD), np.float32)], axis=2),
            "target": target,
        },
    }
    for name, arrays in files.items():
        np.savez_compressed(folder / f"{name}.npz", allow_pickle=False, **arrays)
    return [folder / f"{name}.npz" for name in files]


def _checkpoints(folder: Path) -> list[Path]:
    given: dict[str, Any] = {"dataset_fingerprint": "f" * 64, "encoder": ENCODER}
    config = ModelConfig(**SHAPE)  # type: ignore[arg-type]
    model = build_model(config)
    save_checkpoint(folder / "best.pt", model, **given, loop={"epoch": 3, "val": {"cosine": 0.5}})
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    loop = {"history": [{"epoch": 1}], "optimizer": optimizer.state_dict(), "step": 7}
    save_checkpoint(folder / "state.pt", model, **given, loop=loop)
    rich = ModelConfig(**SHAPE, relations=("is a",), members=2, n_memory=6)  # type: ignore[arg-type]
    related = build_model(rich)
    assert related.memory_head is not None
    related.memory_head.set_memory(torch.eye(5, D_VECTOR))
    save_checkpoint(folder / "rich.pt", related, **given)
    save_baseline(folder / "gru.pt", GRUBaseline(8), **given)
    save_baseline(folder / "transformer.pt", TransformerBaseline(16, 8, 2), **given)
    older = torch.load(folder / "best.pt", weights_only=True) | {"format_version": 2}
    torch.save(older, folder / "older.pt")
    return sorted(folder.glob("*.pt"))


def _chains(folder: Path) -> list[Path]:
    lines = [
        {
            "chain_id": f"w{i}", "concepts": [f"c{i}", "b_é", "a", "root"], "source": "wordnet",
            "chain_length": 4, "metadata": {"pos": "n", "lexname": "noun.animal"},
            "relations": ["is a", None, "is a"], "confidences": [0.5, 0, 1],
        }
        for i in range(6)
    ]  # fmt: skip
    return [_lines(folder / "chains.jsonl", lines)]


def _queues(folder: Path) -> list[Path]:
    metric = {"key": "val", "value": 0.5, "time": 1, "step": 1, "dataset": ["d", "1"]}
    lines: list[dict[str, Any]] = [
        {"queue_version": 1, "store": "http://localhost:5000"},
        {"op": "log", "run_id": "a" * 32, "metrics": [metric], "params": {"p": "1"}, "epoch": 1},
        {"op": "artifact", "run_id": "a" * 32, "path": "report.html", "artifact_path": "reports"},
        {"op": "end", "run_id": "a" * 32, "status": "FINISHED", "time": 3},
    ]
    older = [{"spool_version": 1, "store": "http://localhost:5000"}, *lines[1:]]
    return [_lines(folder / "q.queue.jsonl", lines), _lines(folder / "q.spool.jsonl", older)]


def _lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _settings(folder: Path) -> list[Path]:
    (folder / "run.toml").write_text(TOML)
    return [folder / "run.toml"]


def _spaces(folder: Path) -> list[Path]:
    (folder / "space.yaml").write_text(YAML)
    return [folder / "space.yaml"]
