"""The small graph of `graph_maker`, and the vectors of its texts."""

from __future__ import annotations

import pytest
from graph_maker import WordTokens, write_graph

from ocp_mamba.embeddings.tokens import encode_tokens
from ocp_mamba.link_prediction.graph import KnowledgeGraph, read_graph
from ocp_mamba.link_prediction.vectors import TextVectors, pool


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> KnowledgeGraph:
    return read_graph(write_graph(tmp_path_factory.mktemp("graph")))


@pytest.fixture(scope="module")
def vectors(graph: KnowledgeGraph, tmp_path_factory: pytest.TempPathFactory) -> TextVectors:
    tokens = encode_tokens(
        WordTokens(), graph.texts, tmp_path_factory.mktemp("cache"), progress=False
    )
    return TextVectors(tokens, *pool(tokens), {"name": "words"})
