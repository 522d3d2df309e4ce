"""The training of a query model with its candidate head: a softmax over sampled candidates."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ocp_mamba.errors import NotFiniteError
from ocp_mamba.link_prediction.candidates import CandidateHead
from ocp_mamba.link_prediction.graph import KnowledgeGraph
from ocp_mamba.link_prediction.models import Reader
from ocp_mamba.link_prediction.queries import Queries, children_of
from ocp_mamba.link_prediction.ranking import METRICS, Scorer, rank


@dataclass(frozen=True)
class TrainSettings:
    """How a model is trained.

    Attributes:
        epochs: passes over train's hypernym edges.
        batch: edges of a step.
        lr: peak of the learning rate, which falls linearly to 0 after a tenth of warming up.
        weight_decay: AdamW's.
        parents: train parents that are drawn as candidates of a step.
        others: entities that are no train parent, drawn as candidates of a step.
        negatives: also tell the parent from the child itself and from a child of the child.
        clip: greatest norm of the gradient.
    """

    epochs: int = 6
    batch: int = 512
    lr: float = 2e-3
    weight_decay: float = 0.01
    parents: int = 1536
    others: int = 512
    negatives: bool = True
    clip: float = 1.0


@dataclass(frozen=True)
class Epoch:
    """One epoch.

    Attributes:
        epoch: its number, from 1.
        loss: mean of its steps.
        dev: metrics on dev with the mask, and ``unmasked_hits_at_1``.
        lr: learning rate of its last step.
        seconds: of training and evaluation.
        examples_per_second: edges over the seconds of training alone.
        time: when it ended, in Unix milliseconds.
    """

    epoch: int
    loss: float
    dev: dict[str, float]
    lr: float
    seconds: float
    examples_per_second: float
    time: int


class Ranker(nn.Module):
    """A query model, its sequences and its candidate head."""

    def __init__(self, model: nn.Module, reader: Reader, head: CandidateHead) -> None:
        """Put the three together."""
        super().__init__()
        self.model, self.reader, self.head = model, reader, head

    def queries(self, heads: np.ndarray) -> Tensor:
        """Return the vectors that are searched, unit rows ``(B, D)``; products are in bfloat16."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found: Tensor = self.model(self.reader(heads))
        return found.float()

    def scorer(self) -> Scorer:
        """Return the scorer of the model as it is now, without dropout."""
        self.eval()
        with torch.no_grad():
            prepared = self.head.prepare(torch.arange(len(self.head.candidates.pooled)))

        def score(heads: np.ndarray) -> np.ndarray:
            self.eval()
            with torch.no_grad():
                return self.head.all_scores(self.queries(heads), heads, prepared).numpy()

        return score


class Sampler:
    """Draws the candidates of a step, and says how likely each was drawn."""

    def __init__(self, graph: KnowledgeGraph, settings: TrainSettings, seed: int) -> None:
        """Divide the entities into train parents and the others."""
        is_parent = np.zeros(graph.n_entities, dtype=bool)
        is_parent[graph.pairs("train")[:, 1]] = True
        self._pools = [np.flatnonzero(is_parent), np.flatnonzero(~is_parent)]
        wanted = (settings.parents, settings.others)
        self._counts = [min(n, len(p)) for n, p in zip(wanted, self._pools, strict=True)]
        self._rng = np.random.default_rng(seed)

    def draw(self, always: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Return the candidates, ascending, and the log probability by which each is among them.

        Args:
            always: candidates that are there in any case, the batch's parents.
        """
        drawn = [
            self._rng.choice(pool, n, replace=False)
            for pool, n in zip(self._pools, self._counts, strict=True)
        ]
        rows = np.unique(np.concatenate([*drawn, always]))
        parents = np.isin(rows, self._pools[0], assume_unique=True)
        shares = [n / max(1, len(p)) for n, p in zip(self._counts, self._pools, strict=True)]
        return rows, torch.from_numpy(np.log(np.where(parents, *shares)).astype(np.float32))


def train(
    ranker: Ranker,
    graph: KnowledgeGraph,
    dev: Queries,
    settings: TrainSettings,
    seed: int,
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Train a ranker and leave it with the weights of the epoch that has the best MRR on dev.

    Args:
        ranker: changed in place.
        graph: its train edges are learnt.
        dev: chooses the epoch, with the mask.
        settings: of the training.
        seed: of the batches and the candidates; that of the weights is the caller's.
        on_epoch: called after each epoch.

    Raises:
        NotFiniteError: the loss is NaN or infinite.
    """
    edges, loss_of = graph.pairs("train"), _Loss(ranker, graph, settings, seed)
    optimizer = torch.optim.AdamW(
        ranker.parameters(), lr=settings.lr, weight_decay=settings.weight_decay
    )
    steps = settings.epochs * math.ceil(len(edges) / settings.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.1 * steps), (steps - step) / (0.9 * steps))
    )
    history: list[Epoch] = []
    best: dict[str, Tensor] = {}
    rng = np.random.default_rng(seed)
    for epoch in range(1, settings.epochs + 1):
        started, losses = time.perf_counter(), []
        ranker.train()
        for batch in _batches(edges, settings.batch, rng):
            loss = loss_of(batch)
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NotFiniteError(f"the loss of epoch {epoch} is {losses[-1]}; lower the lr")
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(ranker.parameters(), settings.clip)
            optimizer.step()
            schedule.step()
        rate = len(edges) / (time.perf_counter() - started)
        lr = float(schedule.get_last_lr()[0])
        ranks = rank(ranker.scorer(), dev)
        numbers = {name: float(value(ranks.masked).mean()) for name, value in METRICS.items()}
        numbers["unmasked_hits_at_1"] = float((ranks.unmasked <= 1).mean())
        seconds = time.perf_counter() - started
        history.append(Epoch(epoch, float(np.mean(losses)), numbers, lr, seconds, rate, _now()))
        if numbers["mrr"] >= max(past.dev["mrr"] for past in history):
            best = copy.deepcopy(ranker.state_dict())
        on_epoch(history[-1])
    ranker.load_state_dict(best)
    return history


def _batches(edges: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    order = rng.permutation(len(edges))
    for start in range(0, len(order), size):
        yield edges[order[start : start + size]]


def _now() -> int:
    return int(time.time() * 1000)


class _Loss:
    """The cross entropy of a batch of edges, with the partition function estimated from a sample.

    The parent stands in it once; each other candidate with one over the probability that it was
    drawn. The parent's features lack the edge that is to be predicted.
    """

    def __init__(
        self, ranker: Ranker, graph: KnowledgeGraph, settings: TrainSettings, seed: int
    ) -> None:
        self._ranker, self._settings = ranker, settings
        self._sampler = Sampler(graph, settings, seed)
        self._children = children_of(graph)
        self._rng = np.random.default_rng(seed)
        self._parents: dict[int, list[int]] = {}
        for child, parent in graph.pairs("train").tolist():
            self._parents.setdefault(child, []).append(parent)
        self._columns = np.full(graph.n_entities, -1)

    def __call__(self, batch: np.ndarray) -> Tensor:
        heads, parents = batch.T
        queries, head = self._ranker.queries(heads), self._ranker.head
        rows, log_drawn = self._sampler.draw(np.unique(parents))
        self._columns[rows] = np.arange(len(rows))
        logits = head.scores(queries, torch.from_numpy(rows))
        right = head.scores_of_pairs(queries, torch.from_numpy(parents), torch.from_numpy(heads))
        if (walks := head.walk_scores(heads)) is not None:
            logits, right = self._with_walks(logits, right, parents, walks)
        hidden = self._known(heads)
        logits = (logits - log_drawn).index_put(hidden, torch.tensor(-torch.inf))
        columns = [right[:, None], logits]
        if self._settings.negatives:
            columns += [s[:, None] for s in self._own_negatives(queries, heads)]
        self._columns[rows] = -1
        return F.cross_entropy(torch.cat(columns, dim=1), torch.zeros(len(batch), dtype=torch.long))

    def _with_walks(
        self, logits: Tensor, right: Tensor, parents: np.ndarray, walks: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Add the walks' scores to those of the sampled candidates and of the parents."""
        rows, entities, added = walks
        columns = torch.from_numpy(self._columns[entities.numpy()])
        there = columns >= 0
        logits = logits.index_put((rows[there], columns[there]), added[there], accumulate=True)
        of_parent = torch.from_numpy(parents)[rows] == entities
        return logits, right.index_put((rows[of_parent],), added[of_parent], accumulate=True)

    def _known(self, heads: np.ndarray) -> tuple[Tensor, Tensor]:
        """Row and column of the train parents of each head, which have no place in the sample."""
        pairs = [
            (row, self._columns[parent])
            for row, head in enumerate(heads.tolist())
            for parent in self._parents[head]
        ]
        found = torch.tensor([pair for pair in pairs if pair[1] >= 0])
        return found[:, 0], found[:, 1]

    def _own_negatives(self, queries: Tensor, heads: np.ndarray) -> Iterator[Tensor]:
        """The scores of each head itself and of one of its children, -inf where it has none."""
        head = self._ranker.head
        yield head.scores_of_pairs(queries, torch.from_numpy(heads))
        children = [self._children.get(entity, ()) for entity in heads.tolist()]
        drawn = np.array([c[self._rng.integers(len(c))] if len(c) else -1 for c in children])
        scores = head.scores_of_pairs(queries, torch.from_numpy(np.maximum(drawn, 0)))
        yield scores.masked_fill(torch.from_numpy(drawn < 0), -torch.inf)
