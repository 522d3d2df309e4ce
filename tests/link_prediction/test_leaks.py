"""What a train head is told of its own parent: never more than a test head is told of its."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ocp_mamba.link_prediction.candidates import candidates_of
from ocp_mamba.link_prediction.graph import HYPERNYM, KnowledgeGraph
from ocp_mamba.link_prediction.models import NEIGHBOURHOOD, reader_of
from ocp_mamba.link_prediction.paths import walks_of
from ocp_mamba.link_prediction.vectors import TextVectors

EDGE = ("c052", "p05")


def without_edge(graph: KnowledgeGraph) -> tuple[KnowledgeGraph, int, int]:
    """The graph without one hypernym edge of train, and the ends of that edge."""
    child, parent = (graph.ids.index(name) for name in EDGE)
    train = graph.triples["train"]
    kept = (train != [child, graph.relations.index(HYPERNYM), parent]).any(axis=1)
    assert kept.sum() == len(train) - 1
    return replace(graph, triples={**graph.triples, "train": train[kept]}), child, parent


def test_walks_of_a_train_head_are_those_of_the_graph_without_its_edge(
    graph: KnowledgeGraph,
) -> None:
    other, child, _ = without_edge(graph)
    whole, less = walks_of(graph), walks_of(other)
    assert whole.types == less.types
    assert whole.types[0] == f"_member_meronym^-1 _member_meronym {HYPERNYM}"
    for a, b in zip(whole.of(np.array([child])), less.of(np.array([child])), strict=True):
        np.testing.assert_allclose(a, b)
    row, candidate, _, share = whole.of(np.array([child]))
    assert row.tolist() == [0]
    assert graph.ids[candidate[0]] == "p05"
    assert share[0] == pytest.approx(1)


def test_features_of_a_parent_without_an_edge_are_those_of_the_graph_without_it(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    other, child, parent = without_edge(graph)
    rows = torch.tensor([parent])
    found = candidates_of(graph, vectors, None).features_without(rows, torch.tensor([child]))
    wanted = candidates_of(other, vectors, None).features(rows)
    whole = candidates_of(graph, vectors, None).features(rows)
    for a, b, c in zip(found, wanted, whole, strict=True):
        torch.testing.assert_close(a, b, atol=1e-2, rtol=1e-2)
        assert not torch.allclose(a, c, atol=1e-3)


def test_an_only_child_leaves_its_parent_without_children(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    head, parent = graph.pairs("dev")[0]
    train = np.concatenate([graph.triples["train"], [[parent, 0, head]]])  # head has one child now
    changed = replace(graph, triples={**graph.triples, "train": train})
    features, n = candidates_of(changed, vectors, None).features_without(
        torch.tensor([head]), torch.tensor([parent])
    )
    assert n.tolist() == [0]
    assert features[0, -768:].abs().max() == 0


def test_neighbours_never_hold_the_parent_by_its_own_edge(
    graph: KnowledgeGraph, vectors: TextVectors
) -> None:
    other, child, parent = without_edge(graph)
    whole = reader_of(NEIGHBOURHOOD, graph, vectors, 6)(np.array([child, parent]))
    less = reader_of(NEIGHBOURHOOD, other, vectors, 6)(np.array([child]))
    n = int(less.lengths[0])
    assert n == int(whole.lengths[0]) == 2  # its group, and itself
    torch.testing.assert_close(whole.vectors[0, :n], less.vectors[0])
    assert whole.relations is not None
    assert torch.equal(whole.vectors[0, n - 1], torch.from_numpy(vectors.pooled[child]))
    assert int(whole.lengths[1]) == 7  # a parent reads its children
    assert set(whole.relations[1, :6, 0].tolist()) == {4.0 - 2.0}
