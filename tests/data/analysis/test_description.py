"""What `data check` says of a person's own data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_maker import make_dataset

from ocp_mamba.data.analysis.description import describe, direction, fans
from ocp_mamba.data.analysis.leakage import check
from ocp_mamba.data.dataset import Dataset


def of_chains(chains: list[list[int]], split: list[int], **replaced: Any) -> Dataset:
    lengths = [len(chain) for chain in chains]
    n = len(chains)
    fields: dict[str, Any] = {
        "chain_values": np.concatenate(chains).astype(np.int32),
        "chain_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "chain_source": np.zeros(n, np.uint8),
        "chain_tmd": None,
        "split": np.array(split, np.uint8),
        "chain_first": np.full(n, 2, np.uint8),
    }
    return make_dataset(1, int(max(map(max, chains))) + 1, **fields | replaced)


def tree_paths(children: int, depth: int) -> list[list[int]]:
    """Paths from each leaf of a tree to its root, concept 0."""
    first = sum(children**d for d in range(depth))
    paths = []
    for leaf in range(first, first + children**depth):
        path = [leaf]
        while path[-1]:
            path.append((path[-1] - 1) // children)
        paths.append(path)
    return paths


def test_the_direction_is_told_by_fans() -> None:
    up = tree_paths(3, 4)
    down = [path[::-1] for path in up]
    for chains, wanted in ((up, "leaf → root"), (down, "root → leaf")):
        data = of_chains(chains, [0] * len(chains))
        assert direction(*fans(data)) == wanted
        report = check(data)
        assert any(wanted in sentence for sentence in report.description)
        assert f"Direction: {wanted}" in report.to_markdown()
    rng = np.random.default_rng(0)
    graph = [rng.permutation(40)[:5].tolist() for _ in range(80)]
    assert direction(*fans(of_chains(graph, [0] * 80))) == "no clear direction"


def test_a_leaf_has_one_parent_and_a_parent_its_children() -> None:
    fan_out, fan_in = fans(of_chains(tree_paths(3, 3), [0] * 27))
    assert fan_out == 1
    assert fan_in == 3


@pytest.mark.parametrize(("seen", "warned"), [(2, "only 2 of 60"), (30, None), (60, "60 of 60")])
def test_how_many_transitions_train_has_seen_is_said(seen: int, warned: str | None) -> None:
    """Few leave nothing to look up; all leave nothing new."""
    val = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(60)]
    train = [[200 + i, *val[i][1:]] for i in range(seen)] or [[200, 201, 202]]
    report = check(of_chains(val + train, [1] * 60 + [0] * len(train)))
    sentence = f"val: train has {seen} of 60 transitions"
    assert any(sentence in said for said in report.description)
    about = [w for w in report.warnings if "transitions of val" in w]
    assert (about and warned in about[0]) if warned else not about


def test_chains_in_one_group_are_said_and_warned_of() -> None:
    siblings = [[100 + i, 0, 1] for i in range(50)]
    alone = [[200 + 3 * i, 201 + 3 * i, 202 + 3 * i] for i in range(50)]
    numbers, said, warned = describe(of_chains(siblings + alone, [0] * 50 + [1] * 50))
    assert numbers["largest_group_chains"] == 50
    assert any("51 groups" in sentence for sentence in said)
    assert "50 of 100 chains (50%) are one group, in train" in warned[0]
    assert describe(of_chains(alone, [0] * 50))[2] == []


def test_what_tmd_is_stands_beside_its_absence() -> None:
    chains = [[3 * i, 3 * i + 1, 3 * i + 2] for i in range(10)]
    report = check(of_chains(chains, [0] * 10, chain_tmd=np.zeros((10, 16), np.float32)))
    (about,) = [w for w in report.warnings if "TMD" in w]
    assert "100.0% of the chains have all-zero TMD codes" in about
    assert "Domain, Task and Modifier" in about
    assert "--tmd" in about


def in_two_languages(n: int, seed: int) -> Dataset:
    """Chains whose steps change between two languages, which part vectors more than meaning."""
    rng = np.random.default_rng(seed)
    meaning = rng.standard_normal((n, 768))
    language = 4 * rng.standard_normal((2, 768))
    rows = np.concatenate([meaning[:, None] + 0.9 * rng.standard_normal((n, 5, 768))])
    rows += language[np.arange(5) % 2][None]
    bank = (rows / np.linalg.norm(rows, axis=2, keepdims=True)).reshape(-1, 768)
    chains = [list(range(5 * i, 5 * i + 5)) for i in range(n)]
    return of_chains(chains, rng.choice(3, n, p=[0.6, 0.2, 0.2]).tolist(),
                     bank=bank.astype(np.float32))  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [30, 200])
def test_data_in_several_languages_are_not_called_shuffled(n: int, seed: int) -> None:
    report = check(in_two_languages(n, seed))
    assert not any("shuffled" in w for w in report.warnings)


def test_they_are_where_they_were_shuffled() -> None:
    data = in_two_languages(200, 0)
    values = data.chain_values.reshape(200, 5).copy()
    for place in range(2, 5):
        values[:, place] = np.random.default_rng(place).permutation(values[:, place])
    report = check(of_chains(values.tolist(), data.split.tolist(), bank=data.bank))
    assert sum("the targets look shuffled" in w for w in report.warnings) == 3
