"""Small valid datasets for tests, made on the spot."""

from __future__ import annotations

from typing import Any

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.data.dataset import SCHEMA_VERSION, Dataset

TINY = {"d_model": 32, "n_layers": 1, "headdim": 16}
"""The smallest shape of a model that tests train."""


def fields_of(dataset: Dataset) -> dict[str, Any]:
    return {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__}


def make_dataset(
    n_chains: int = 40,
    n_concepts: int = 30,
    seed: int = 0,
    *,
    tmd: bool = True,
    relations: bool = False,
    min_length: int = 3,
    max_length: int = 9,
    **replaced: Any,
) -> Dataset:
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal((n_concepts, D_VECTOR))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    lengths = rng.integers(min_length, max_length + 1, n_chains)
    fields: dict[str, Any] = {
        "bank": bank.astype(np.float32),
        "texts": np.array([f"concept é {i}" for i in range(n_concepts)]),
        "chain_values": rng.integers(0, n_concepts, lengths.sum()).astype(np.int32),
        "chain_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "chain_source": rng.integers(0, 2, n_chains).astype(np.uint8),
        "chain_tmd": rng.standard_normal((n_chains, D_TMD)).astype(np.float32) if tmd else None,
        "split": rng.choice(3, n_chains, p=[0.6, 0.2, 0.2]).astype(np.uint8),
        "meta": {
            "schema_version": SCHEMA_VERSION,
            "encoder": {"name": "random", "weight_hash": "0" * 64},
            "sources": ["wordnet", "swo"],
        },
        "chain_first": np.full(n_chains, 2, dtype=np.uint8),
    }
    if relations:
        known = rng.integers(0, 3, lengths.sum()).astype(np.uint16)
        known[fields["chain_offsets"][:-1]] = 0
        sure = rng.random(lengths.sum()).astype(np.float32) * (known > 0)
        fields |= {"chain_relation": known, "chain_confidence": sure.astype(np.float32)}
        fields["meta"]["relations"] = ["is a", "part of"]
    return Dataset(**fields | replaced)
