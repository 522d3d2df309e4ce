"""The trained rows of the benchmark: each training writes one file and is not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ocp_mamba.errors import CheckpointError
from ocp_mamba.link_prediction.candidates import Candidates
from ocp_mamba.link_prediction.graph import KnowledgeGraph
from ocp_mamba.link_prediction.queries import Queries
from ocp_mamba.link_prediction.rows import Row
from ocp_mamba.link_prediction.training import Epoch, Ranker, train
from ocp_mamba.link_prediction.vectors import TextVectors
from ocp_mamba.system.tensor_file import read_tensors, write_tensors

VERSION = 1
"""Of the training's code: files of another version are not taken for the same training."""


@dataclass(frozen=True)
class Benchmark:
    """What every row is trained and evaluated on.

    Attributes:
        graph: the knowledge graph.
        vectors: of its texts.
        candidates: its entities, with the walks.
        dev: the queries by which epochs and settings are chosen.
    """

    graph: KnowledgeGraph
    vectors: TextVectors
    candidates: Candidates
    dev: Queries


@dataclass(frozen=True)
class Trained:
    """A row trained with one seed."""

    ranker: Ranker
    history: list[Epoch]
    path: Path
    again: bool

    @property
    def parameters(self) -> int:
        """Number of weights that were learnt."""
        return sum(weight.numel() for weight in self.ranker.parameters())

    @property
    def seconds(self) -> float:
        """Wall-clock of all epochs with their evaluation on dev."""
        return sum(epoch.seconds for epoch in self.history)

    @property
    def best(self) -> Epoch:
        """The epoch whose weights these are."""
        return max(self.history, key=lambda epoch: (epoch.dev["mrr"], epoch.epoch))


def file_of(folder: Path, row: Row, seed: int, benchmark: Benchmark) -> Path:
    """Return the file of a training; its name has a hash of all that the training depends on."""
    content = [VERSION, row.settings(), benchmark.graph.digest, benchmark.vectors.encoder]
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    return folder / f"{row.name}-seed{seed}-{key}.pt"


def get_trained(
    folder: Path, row: Row, seed: int, benchmark: Benchmark, on_epoch: Callable[[Epoch], None]
) -> Trained:
    """Return a row trained with a seed; it is trained first where it has no file yet.

    Raises:
        CheckpointError: the file is damaged.
        NotFiniteError: the training's loss is not finite.
    """
    path = file_of(folder, row, seed, benchmark)
    ranker = row.build(benchmark.graph, benchmark.vectors, benchmark.candidates, seed)
    if path.exists():
        content, _ = read_tensors(path)
        return Trained(ranker, _restored(ranker, content, path), path, again=True)
    history = train(ranker, benchmark.graph, benchmark.dev, row.train, seed, on_epoch)
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: weight.detach() for name, weight in ranker.state_dict().items()}
    write_tensors(path, {"weights": state, "history": [asdict(epoch) for epoch in history]})
    return Trained(ranker, history, path, again=False)


def _restored(ranker: Ranker, content: Any, path: Path) -> list[Epoch]:
    """Load the weights of a file; returns the history that it has."""
    try:
        ranker.load_state_dict(content["weights"], strict=True)
        return [Epoch(**epoch) for epoch in content["history"]]
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: is not what this training writes; remove it, and it is trained again"
        ) from error
