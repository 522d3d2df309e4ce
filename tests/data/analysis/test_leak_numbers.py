"""The numbers of a leak report by hand, and the report word for word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from data_maker import make_dataset

from ocp_mamba.config import D_TMD
from ocp_mamba.data.analysis import leakage
from ocp_mamba.data.analysis.leakage import STRATA, LeakReport, check, strata
from ocp_mamba.data.analysis.sample import Sample
from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.evaluation.gates import dataset_leak_gate
from ocp_mamba.stats import other_of_each


def dataset_of(chains: dict[str, list[list[int]]], **replaced: Any) -> Dataset:
    """Chains by split, over a bank of random vectors, of one source."""
    flat = [chain for split in SPLITS for chain in chains.get(split, [])]
    lengths = [len(chain) for chain in flat]
    fields: dict[str, Any] = {
        "chain_values": np.concatenate(flat).astype(np.int32),
        "chain_offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "chain_source": np.zeros(len(flat), np.uint8),
        "chain_tmd": None,
        "split": np.repeat([0, 1, 2], [len(chains.get(s, [])) for s in SPLITS]).astype(np.uint8),
        "chain_first": np.full(len(flat), 2, np.uint8),
    }
    return make_dataset(1, 600, **fields | replaced)


def apart(n: int, first: int) -> list[list[int]]:
    return [[first + 3 * i, first + 3 * i + 1, first + 3 * i + 2] for i in range(n)]


@pytest.mark.parametrize("into", ["val", "test"])
def test_one_leak_among_many_is_a_leak(into: str) -> None:
    """A share below any rounding is a leak like any other."""
    chains = {"train": apart(60, 0), "val": apart(60, 180), "test": apart(60, 360)}
    clean = check(dataset_of(chains))
    assert not clean.leaks
    assert dataset_leak_gate(clean.leaks) == "pass"
    chains[into] = [*chains[into] * 3, chains["train"][0]]
    report = check(dataset_of(chains))
    assert report.pairs["train", into] == (1, pytest.approx(1 / 181))
    assert report.leaks
    assert dataset_leak_gate(report.leaks) == "fail"
    assert f"1 examples of {into} (0.6%) also are in train, context and target: " in str(
        report.warnings
    )
    assert report.to_markdown().startswith("**LEAKS**")
    tiny = LeakReport({}, {("train", into): (1, 1e-9)}, {}, {})
    assert tiny.leaks


def test_val_and_test_may_not_share_either_whatever_training_learns() -> None:
    chains = {"train": apart(2, 0), "val": [[50, 51, 52, 53]], "test": [[50, 51, 52, 60]]}
    for min_context in (None, 1, 2, 5):
        report = check(dataset_of(chains), min_context=min_context)
        assert report.pairs["val", "test"] == (1, 0.5)
        assert report.min_context == min_context
        assert report.sample is None


def test_a_longer_least_context_learns_less() -> None:
    data = dataset_of({"train": [[0, 1, 2, 3, 4]], "val": [[0, 1, 2, 9], [0, 1, 2, 3, 8]]})
    found = {c: check(data, min_context=c).pairs["train", "val"] for c in (1, 2, 3, 4)}
    assert [count for count, _ in found.values()] == [3, 3, 1, 0]
    assert found[2][1] == pytest.approx(3 / 5)


def expected(bank: np.ndarray, pairs: list[tuple[int, int, int]]) -> tuple[float, float, float]:
    """Mean cosine of (last, target), of (last, other target), and the gain's standard error."""
    near = np.array([bank[a] @ bank[b] for a, b, _ in pairs])
    far = np.array([bank[a] @ bank[c] for a, _, c in pairs])
    error = (near - far).std() / np.sqrt(len(pairs))
    return near.mean(), far.mean(), error


def test_paired_cosines_are_compared_within_a_position() -> None:
    """Two chains and no third: at each position the other target can only be the other chain's."""
    one, other = [0, 1, 2, 3], [4, 5, 6, 7]
    data = dataset_of({"train": [one, other]})
    values = check(data).splits["train"]
    pairs = [(a[k - 1], a[k], b[k]) for k in (2, 3) for a, b in ((one, other), (other, one))]
    near, far, error = expected(data.bank, pairs)
    assert values["paired_cosine"] == pytest.approx(near, abs=1e-6)
    assert values["permuted_cosine"] == pytest.approx(far, abs=1e-6)
    assert values["paired_gain_standard_error"] == pytest.approx(error, abs=1e-6)
    context = [(a[0], a[1], b[1]) for a, b in ((one, other), (other, one))]
    near, far, error = expected(data.bank, context)
    assert values["context_gain"] == pytest.approx(near - far, abs=1e-6)
    assert values["context_gain_standard_error"] == pytest.approx(error, abs=1e-6)


def test_the_gain_within_contexts_ends_before_the_first_target() -> None:
    chains = [[0, 1, 2, 3, 4, 5], [10, 11, 12, 13], [20, 21, 22, 23, 24]]
    firsts = [4, 3, 4]
    data = dataset_of(
        {"train": [[30, 31, 32, 33]], "val": chains}, chain_first=np.array([3, *firsts], np.uint8)
    )
    near, far = [], []
    for k in (1, 2, 3):
        rows = [c for c, first in zip(chains, firsts, strict=True) if k < first]
        drawn = other_of_each(np.array([c[k] for c in rows]), 3)
        near += [data.bank[c[k - 1]] @ data.bank[c[k]] for c in rows]
        far += [data.bank[c[k - 1]] @ data.bank[d] for c, d in zip(rows, drawn, strict=True)]
    gain = np.array(near) - np.array(far)
    assert check(data).splits == check(data, seed=0).splits != check(data, seed=3).splits
    found = check(data, seed=3).splits["val"]
    assert found["context_gain"] == pytest.approx(gain.mean(), abs=1e-6)
    error = gain.std() / np.sqrt(len(gain))
    assert found["context_gain_standard_error"] == pytest.approx(error, abs=1e-6)


def test_contexts_of_one_concept_have_no_neighbours() -> None:
    data = dataset_of({"train": apart(3, 0)}, chain_first=np.ones(3, np.uint8))
    values = check(data).splits["train"]
    assert "context_gain" not in values
    assert values["examples"] == 6
    assert values["chains"] == 3


def test_where_all_targets_are_one_concept_the_two_cosines_are_the_same() -> None:
    values = check(dataset_of({"train": [[0, 1, 9], [2, 3, 9]]})).splits["train"]
    assert values["paired_cosine"] == values["permuted_cosine"]
    assert values["paired_gain_standard_error"] == 0.0


def test_counts_shares_and_ceilings_of_each_split() -> None:
    data = dataset_of(
        {
            "train": [[0, 1, 2, 2], [0, 1, 2, 3], [5, 6, 7]],
            "val": [[8, 1, 2], [8, 0, 30], [8, 9, 9], [8, 1, 2]],
        }
    )
    report = check(data)
    train, val = report.splits["train"], report.splits["val"]
    assert list(report.splits) == ["train", "val"]
    assert (train["chains"], train["examples"], train["repeated_examples"]) == (3, 5, 1)
    assert train["top1_ceiling"] == pytest.approx(4 / 5)
    assert train["target_is_last_share"] == pytest.approx(1 / 5)
    assert (val["chains"], val["examples"], val["repeated_examples"]) == (4, 4, 1)
    assert val["targets_seen_share"] == pytest.approx(1 / 2)
    assert val["transitions_seen_share"] == pytest.approx(1 / 2)
    assert [val[f"{name}_examples"] for name in STRATA] == [2, 2, 2]
    assert not any("seen" in name for name in train)
    assert set(strata(data, "val")) == set(STRATA)
    assert all(isinstance(value, float) for value in (train | val).values())


def test_a_prefix_belongs_to_its_whole_beginning() -> None:
    """The same last two concepts after another beginning are another context."""
    chains = {"train": [[0, 1, 2, 3]], "val": [[9, 1, 2, 3]], "test": [[1, 2, 3]]}
    assert not check(dataset_of(chains), min_context=1).leaks


def test_bank_numbers_by_hand() -> None:
    data = dataset_of({"train": [[0, 1, 2], [3, 4, 0]]})
    bank = data.bank.astype(np.float64)
    bank[0] *= 1.002
    bank[5] *= 0.9985
    bank[6] *= 1.0008
    bank[7] *= 1.0015
    tmd = np.zeros((2, D_TMD), np.float32)
    tmd[0, -1] = 1
    found = check(
        dataset_of(
            {"train": [[0, 1, 2], [3, 4, 0]]}, bank=bank.astype(np.float32), chain_tmd=tmd
        )
    ).bank  # fmt: skip
    assert found["concepts"] == 600
    assert found["non_unit_rows"] == 3
    assert found["largest_norm_error"] == pytest.approx(0.002, abs=1e-6)
    assert found["duplicate_vectors"] == found["duplicate_texts"] == 0
    assert found["unused_concepts"] == 595
    assert found["zero_tmd_share"] == 0.5


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_dataset(40, 50, seed=3)
    bank = data.bank.copy()
    bank[[3, 44]] *= np.float32(1.002)
    data = make_dataset(40, 50, seed=3, bank=bank)
    whole = check(data)
    monkeypatch.setattr(leakage, "_CHUNK", 7)
    parts = check(data)
    assert parts.figures() == pytest.approx(whole.figures(), abs=1e-6)
    assert parts.bank["non_unit_rows"] == 2


def test_known_relations_are_a_share_of_the_steps() -> None:
    plain = make_dataset(30, 20, relations=True)
    known = np.count_nonzero(plain.chain_relation)
    found = check(plain).bank
    assert found["relations"] == 2
    steps = len(plain.chain_values) - 30
    assert found["known_relation_share"] == pytest.approx(known / steps)
    mean = plain.chain_confidence.sum(dtype=np.float64) / known
    assert found["mean_relation_confidence"] == pytest.approx(mean)


def report(**changed: Any) -> LeakReport:
    fields: dict[str, Any] = {
        "splits": {
            "train": {"chains": 3.0, "top1_ceiling": 0.123456},
            "val": {"chains": 1234567.0, "targets_seen_share": 0.5},
        },
        "pairs": {("train", "val"): (2, 0.25)},
        "bank": {"concepts": 9.0, "largest_norm_error": 0.000123456},
        "sources": {"a/b (c) é_-.": {"train": 3, "val": 4}},
        "warnings": ["one.", "two."],
        "description": ["It is so."],
    }
    return LeakReport(**fields | changed)


TABLES = """
| number                    | train   | val     | test   |
|---------------------------|---------|---------|--------|
| chains                    | 3       | 1234567 | -      |
| top1_ceiling              | 0.1235  | -       | -      |
| targets_seen_share        | -       | 0.5     | -      |
| examples from a/b (c) é_-. | 3       | 4       | 0      |

| identical examples   | count   | share   |
|----------------------|---------|---------|
| val in train         | 2       | 0.25    |

| whole dataset      | value     |
|--------------------|-----------|
| concepts           | 9         |
| largest_norm_error | 0.0001235 |"""


def squeezed(text: str) -> str:
    """Without the widths of the tables' columns."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "\n".join("|" if set(line) <= set("|-") and line else line for line in lines)


def test_the_report_word_for_word() -> None:
    found = report().to_markdown()
    assert squeezed(found) == squeezed(
        "**LEAKS**: identical (prefix, target) examples straddle splits.\n"
        "Compared with train: the examples that the dataset evaluates.\n"
        "- WARNING: one.\n- WARNING: two.\n\n- It is so.\n" + TABLES
    )
    clean = report(pairs={("train", "val"): (0, 0.0)}, warnings=[], description=[], min_context=1)
    assert clean.to_markdown().startswith(
        "No identical (prefix, target) example straddles splits.\n"
        "Compared with train: every prefix of a train chain with a context of at least 1 concept, "
        "the most that any training learns (`min_context`).\n\n\n| number"
    )
    of_two = report(min_context=2).to_markdown().splitlines()[1]
    assert of_two == (
        "Compared with train: every prefix of a train chain with a context of at least 2 concepts "
        "(`min_context`)."
    )
    sample = Sample("w", "f" * 64, dict.fromkeys(SPLITS, (1, 2)), (3, 4), 0)
    lines = report(sample=sample).to_markdown().splitlines()
    assert lines[0] == f"Of {sample}; looked up in all chains."
    assert lines[1] == ""
    assert lines[2].startswith("**LEAKS**")


def test_figures_have_names_that_mlflow_takes() -> None:
    assert report().figures() == {
        "data/concepts": 9.0,
        "data/largest_norm_error": 0.000123456,
        "data/train_chains": 3.0,
        "data/train_top1_ceiling": 0.123456,
        "data/val_chains": 1234567.0,
        "data/val_targets_seen_share": 0.5,
        "data/val_in_train_examples": 2.0,
        "data/val_in_train_share": 0.25,
        "data/train_source_a/b _c_ __-._examples": 3.0,
        "data/val_source_a/b _c_ __-._examples": 4.0,
    }


def test_few_numbers_are_metrics_of_the_run() -> None:
    assert report().headline() == {"data/val_in_train_examples": 2.0}
    found = check(dataset_of({"train": apart(4, 0), "val": apart(4, 3), "test": apart(2, 0)}))
    assert found.headline() == {
        "data/val_in_train_examples": 3.0,
        "data/test_in_train_examples": 2.0,
        "data/val_transitions_seen_share": 0.75,
        "data/val_top1_ceiling": 1.0,
    }


def test_warnings_and_sentences_come_split_by_split() -> None:
    found = check(dataset_of({"train": apart(40, 0), "val": apart(40, 120), "test": apart(40, 0)}))
    assert found.pairs["train", "test"] == (40, 1.0)
    assert found.description[-2:] == [
        "val: train has 0 of 40 transitions (0.0%); 40 are unseen.",
        "test: train has 40 of 40 transitions (100.0%); 0 are unseen.",
    ]
    assert found.warnings[0].startswith("40 examples of test (100.0%) also are in train")
    assert found.warnings[-2].startswith("train has only 0 of 40 transitions of val (0.0%)")
    assert found.warnings[-1].startswith("train has 40 of 40 transitions of test (100.0%)")
    alone = check(dataset_of({"val": apart(40, 0)}))
    assert not any("transitions" in sentence for sentence in alone.description)


def test_a_split_half_of_which_is_seen_is_not_warned_of() -> None:
    seen = [[560 + i, 3 * i + 1, 3 * i + 2] for i in range(40)]
    found = check(dataset_of({"train": apart(40, 0), "val": seen + apart(40, 120)}))
    assert found.description[-1].startswith("val: train has 40 of 80 transitions (50.0%)")
    assert all(isinstance(warning, str) for warning in found.warnings)
    assert not any("transitions of val" in warning for warning in found.warnings)
