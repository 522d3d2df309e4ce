"""The loss by its definition, the sample's probabilities, and that each model learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ocp_mamba.link_prediction import simple, training
from ocp_mamba.link_prediction.candidates import candidates_of
from ocp_mamba.link_prediction.graph import KnowledgeGraph
from ocp_mamba.link_prediction.paths import walks_of
from ocp_mamba.link_prediction.queries import queries_of
from ocp_mamba.link_prediction.ranking import rank
from ocp_mamba.link_prediction.rows import ROWS, Row
from ocp_mamba.link_prediction.training import Ranker, Sampler, TrainSettings, train
from ocp_mamba.link_prediction.vectors import TextVectors

TINY = TrainSettings(epochs=4, batch=32, parents=9, others=40, lr=3e-3)
SHAPES = {
    "linear": {},
    "attention": {"heads": 2, "hidden": 64, "dropout": 0.0},
    "mamba": {"d_model": 32, "n_layers": 1},
}


def built(name: str, graph: KnowledgeGraph, vectors: TextVectors, seed: int = 0) -> Ranker:
    row = ROWS[name]
    tiny: Row = replace(row, shape=SHAPES[row.model], rank=row.rank and 8, longest=6)
    return tiny.build(graph, vectors, candidates_of(graph, vectors, walks_of(graph)), seed)


@pytest.mark.parametrize(
    "name", ["linear-softmax", "mamba-neighbours", "attention-tokens", "mamba-tokens"]
)
def test_every_row_learns_the_parents_of_new_heads(
    name: str, graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    ranker, seen = built(name, graph, vectors), []
    history = train(ranker, graph, queries_of(graph, "dev"), TINY, 0, seen.append)
    assert seen == history
    assert history[-1].loss < 0.9 * history[0].loss
    ranks = rank(ranker.scorer(), queries_of(graph, "test"))
    common = rank(simple.most_common_parent(graph), queries_of(graph, "test"))
    assert (1 / ranks.masked).mean() > 2 * (1 / common.masked).mean()


def test_the_weights_are_those_of_the_epoch_that_is_best_on_dev(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    ranker, dev = built("mamba-vector", graph, vectors), queries_of(graph, "dev")
    history = train(ranker, graph, dev, TINY, 0, lambda epoch: None)
    best = max(epoch.dev["mrr"] for epoch in history)
    assert (1 / rank(ranker.scorer(), dev).masked).mean() == pytest.approx(best)


def test_a_seed_gives_the_same_training_again(graph: KnowledgeGraph, vectors: TextVectors) -> None:
    settings, losses = replace(TINY, epochs=1), []
    for seed in (0, 0, 1):
        ranker = built("mlp-head", graph, vectors, seed)
        history = train(ranker, graph, queries_of(graph, "dev"), settings, seed, lambda e: None)
        losses.append(history[0].loss)
    assert losses[0] == losses[1] != losses[2]


def test_with_all_candidates_the_loss_is_the_cross_entropy_of_all_scores(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    """Frozen candidates and no own negatives: the sampled loss has no estimate left in it."""
    settings = replace(TINY, parents=10_000, others=10_000, negatives=False)
    ranker = built("linear-softmax", graph, vectors)
    batch = graph.pairs("train")[-5:]
    loss = training._Loss(ranker, graph, settings, 0)(batch)
    scores = torch.from_numpy(ranker.scorer()(batch[:, 0]))
    wanted = torch.nn.functional.cross_entropy(scores, torch.from_numpy(batch[:, 1]))
    torch.testing.assert_close(loss, wanted, atol=2e-2, rtol=2e-2)


def test_the_sample_estimates_the_sum_over_all_candidates(graph: KnowledgeGraph) -> None:
    sampler = Sampler(graph, replace(TINY, parents=4, others=20), seed=0)
    values = np.random.default_rng(0).random(graph.n_entities)
    none = np.empty(0, dtype=np.int64)
    sums = []
    for _ in range(2000):
        rows, log_drawn = sampler.draw(none)
        assert len(rows) == 24
        sums.append((values[rows] / np.exp(log_drawn.numpy())).sum())
    assert np.mean(sums) == pytest.approx(values.sum(), rel=0.02)
    assert np.isin([3, 5], sampler.draw(np.array([3, 5]))[0]).all()


def test_simple_scorers_find_the_parent_that_the_text_names(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    test = queries_of(graph, "test")
    for scorer in (
        simple.neighbour_votes(graph, vectors.pooled, 8, 20.0),
        simple.ridge(graph, vectors.pooled, 1.0),
    ):
        assert (rank(scorer, test).masked <= 1).mean() > 0.9


def test_the_nearest_other_child_votes_for_its_parent(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    parents = dict(graph.pairs("train").tolist())
    score = simple.neighbour_votes(graph, vectors.pooled, 1, 5.0)
    for head in list(parents)[::7]:
        others = [child for child in parents if child != head]
        nearest = max(others, key=lambda child: vectors.pooled[head] @ vectors.pooled[child])
        scores = score(np.array([head]))[0]
        assert scores.argmax() == parents[nearest]
        assert (scores > 1e-5).sum() == 1, "it votes alone, and the head does not itself"
