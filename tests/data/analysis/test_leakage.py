"""The leak report on datasets whose answers are known by hand."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from data_maker import make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from legacy_files import WINDOW_NAMES, full_windows, padded, save, targets_of, window_file

from ocp_mamba.cli.data import data
from ocp_mamba.config import D_TMD
from ocp_mamba.data.analysis.leakage import LeakReport, check, strata
from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.jobs.common import check_dataset_and_log


def dataset_of(chains: dict[str, list[list[int]]], **replaced: Any) -> Dataset:
    """A dataset of the given chains over a bank of random vectors."""
    flat = [chain for split in SPLITS for chain in chains.get(split, [])]
    lengths = [len(chain) for chain in flat]
    split = [i for i, s in enumerate(SPLITS) for _ in chains.get(s, [])]
    fields: dict[str, Any] = {
        "chain_values": np.array([v for chain in flat for v in chain], dtype=np.int32),
        "chain_offsets": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "chain_source": np.zeros(len(flat), dtype=np.uint8),
        "chain_tmd": None,
        "split": np.array(split, dtype=np.uint8),
        "chain_first": np.full(len(flat), 2, dtype=np.uint8),
    }
    return make_dataset(1, 30, **fields | replaced)


def walk_dataset(**replaced: Any) -> Dataset:
    """A clean dataset: chains step along a random walk, so neighbours are alike."""
    return long_walk(50, **replaced)


def long_walk(n: int, **replaced: Any) -> Dataset:
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((n + 10, 768)).cumsum(axis=0)
    bank = (bank / np.linalg.norm(bank, axis=1, keepdims=True)).astype(np.float32)
    starts = np.arange(n)
    fields: dict[str, Any] = {
        "bank": bank,
        "texts": np.array([f"t{i}" for i in range(n + 10)]),
        "chain_values": (starts[:, None] + np.arange(6)).ravel().astype(np.int32),
        "chain_offsets": np.arange(0, 6 * n + 1, 6, dtype=np.int64),
        "chain_source": (starts % 2).astype(np.uint8),
        "chain_tmd": np.ones((n, D_TMD), dtype=np.float32),
        "split": (starts % 3).astype(np.uint8),
        "chain_first": np.full(n, 2, dtype=np.uint8),
    }
    return make_dataset(1, 1, **fields | replaced)


def faults(report: LeakReport) -> list[str]:
    """The warnings but those that almost all transitions are in train, as in these walks."""
    return [w for w in report.warnings if "looking them up is enough" not in w]


def test_clean_dataset_has_no_leak_and_no_warning_but_unused_rows() -> None:
    report = check(walk_dataset())
    assert not report.leaks
    assert faults(report) == []
    assert report.bank["unused_concepts"] == 5
    assert "No identical" in report.to_markdown()


def test_identical_examples_are_counted_for_each_pair_of_splits() -> None:
    report = check(
        dataset_of(
            {
                "train": [[0, 1, 2, 3], [4, 5, 6]],
                "val": [[0, 1, 2, 9], [7, 8, 9]],  # 0 1 → 2 is in train; 0 1 2 → 9 is not
                "test": [[7, 8, 9], [9, 4, 5, 6]],  # 7 8 → 9 is in val; 4 5 → 6 has another prefix
            }
        )
    )
    assert report.leaks
    assert report.pairs == {
        ("train", "val"): (1, pytest.approx(1 / 3)),
        ("train", "test"): (0, 0.0),
        ("val", "test"): (1, pytest.approx(1 / 3)),
    }
    figures = report.figures()
    assert figures["data/val_in_train_examples"] == 1
    assert figures["data/test_in_val_share"] == pytest.approx(1 / 3)
    assert any("1 examples of val (33.3%) also are in train" in w for w in report.warnings)
    assert "**LEAKS**" in report.to_markdown()


def test_a_shared_prefix_that_neither_predicts_is_no_leak() -> None:
    chains = {"train": [[0, 1, 2, 3]], "val": [[0, 1, 2, 4]]}
    assert check(dataset_of(chains)).leaks
    first = np.array([3, 3], dtype=np.uint8)
    assert not check(dataset_of(chains, chain_first=first)).leaks


def test_seen_shares_and_strata_by_hand() -> None:
    dataset = dataset_of(
        {
            "train": [[0, 1, 2, 3]],  # steps 0→1, 1→2, 2→3, the first one too
            "val": [[5, 1, 2, 4], [6, 7, 3], [8, 0, 1], [8, 3, 0]],  # 1→2, 2→4, 7→3, 0→1, 3→0
        }
    )
    parts = strata(dataset, "val")
    assert parts["seen"].tolist() == [True, False, False, True, False]
    assert parts["unseen"].tolist() == [False, True, True, False, True]
    assert parts["unseen_target"].tolist() == [False, True, False, False, True]
    figures = check(dataset).figures()
    assert figures["data/val_targets_seen_share"] == 0.6
    assert figures["data/val_transitions_seen_share"] == 0.4
    assert figures["data/val_seen_examples"] == 2
    assert figures["data/val_unseen_examples"] == 3
    assert figures["data/val_unseen_target_examples"] == 2
    assert not any(name.startswith("data/test_") for name in figures)
    assert "data/train_targets_seen_share" not in figures


def test_ceiling_by_hand() -> None:
    chains = [[0, 1, 2], [0, 1, 2], [0, 1, 3], [4, 5, 6], [4, 5, 7, 8]]
    figures = check(dataset_of({"train": [[9, 8, 7]], "val": chains})).figures()
    # 0 1 → 2, 2, 3: two of three; 4 5 → 6, 7: one of two; 4 5 7 → 8: one of one
    assert figures["data/val_top1_ceiling"] == pytest.approx(4 / 6)
    assert figures["data/val_repeated_examples"] == 1
    assert figures["data/train_top1_ceiling"] == 1.0


def test_shuffled_targets_are_noticed() -> None:
    clean = long_walk(400)
    values = clean.chain_values.reshape(400, 6).copy()
    values[:, 5] = np.random.default_rng(1).permutation(values[:, 5])
    late = np.full(400, 5, dtype=np.uint8)
    single = long_walk(400, chain_first=late)
    shuffled = long_walk(400, chain_first=late, chain_values=values.ravel())
    assert not any("no nearer" in w for w in check(single).warnings)
    assert sum("no nearer" in w for w in check(shuffled).warnings) == 3
    figures = check(single).figures()
    assert figures["data/train_paired_cosine"] > figures["data/train_permuted_cosine"]


def test_targets_that_repeat_the_last_context_concept_are_noticed() -> None:
    report = check(dataset_of({"train": [[0, 1, 1], [2, 3, 4]], "val": [[5, 6, 7]]}))
    assert report.splits["train"]["target_is_last_share"] == 0.5
    assert any("off by one" in w and "train" in w for w in report.warnings)


def test_bank_faults_are_counted() -> None:
    clean = walk_dataset()
    bank, texts = clean.bank.copy(), clean.texts.copy()
    bank[3] = bank[2]
    bank[4] = bank[2] + np.float32(1e-6)  # the same but for rounding
    bank[5] = bank[6] * np.float32(0.99) + bank[20] * np.float32(0.01)  # near, yet another
    bank[5] /= np.linalg.norm(bank[5])
    bank[7] *= np.float32(1.0015)
    texts[1] = texts[0]
    tmd = np.ones((50, D_TMD), dtype=np.float32)
    tmd[:30] = 0
    report = check(walk_dataset(bank=bank, texts=texts, chain_tmd=tmd))
    assert report.bank["duplicate_vectors"] == 2
    assert report.bank["duplicate_texts"] == 1
    assert report.bank["non_unit_rows"] == 1
    assert report.bank["zero_tmd_share"] == 0.6
    assert len(faults(report)) == 4
    assert not report.leaks


def test_no_tmd_has_no_tmd_figure() -> None:
    assert "data/zero_tmd_share" not in check(walk_dataset(chain_tmd=None)).figures()


def test_known_relations_are_counted() -> None:
    plain = walk_dataset()
    known = np.tile(np.array([0, 1, 1, 2, 0], dtype=np.uint16), 60)
    known[plain.chain_offsets[:-1]] = 0
    sure = np.where(known > 0, np.where(known == 1, 0.25, 1), 0).astype(np.float32)
    meta = plain.meta | {"relations": ["is a", "part of"]}
    bank = check(walk_dataset(chain_relation=known, chain_confidence=sure, meta=meta)).bank
    assert bank["relations"] == 2
    assert bank["known_relation_share"] == pytest.approx((known > 0).sum() / 250)
    assert bank["mean_relation_confidence"] == pytest.approx(sure[known > 0].mean())
    assert (
        check(walk_dataset(chain_relation=known, meta=meta)).bank["mean_relation_confidence"] == 1
    )
    unknown = check(walk_dataset(chain_relation=0 * known, meta=meta)).bank
    assert unknown["known_relation_share"] == 0
    assert "mean_relation_confidence" not in unknown
    assert "data/relations" not in check(plain).figures()


def test_sources_are_counted_and_named_for_mlflow() -> None:
    meta = walk_dataset().meta | {"sources": ["wordnet", "häßlich (v2)"]}
    figures = check(walk_dataset(meta=meta)).figures()
    train = figures["data/train_source_wordnet_examples"]
    assert train + figures["data/train_source_h__lich _v2__examples"] == 17 * 4
    assert all(isinstance(value, float) for value in figures.values())
    assert all(np.isfinite(list(figures.values())))
    json.dumps(figures)


def test_the_permutation_comes_from_the_seed() -> None:
    name = "data/val_permuted_cosine"
    values = [check(walk_dataset(), seed=seed).figures()[name] for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 5))
def test_figures_equal_those_of_plain_loops(seed: int, n_concepts: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 6, 25)
    first = rng.integers(1, lengths)
    chains = [rng.integers(0, n_concepts, length).tolist() for length in lengths]
    split = rng.integers(0, 3, 25)
    order = np.argsort(split, kind="stable")
    dataset = dataset_of(
        {s: [chains[i] for i in np.flatnonzero(split == k)] for k, s in enumerate(SPLITS)},
        chain_first=first[order].astype(np.uint8),
    )
    loops: dict[str, list[tuple[tuple[int, ...], int]]] = {split: [] for split in SPLITS}
    for c in range(dataset.n_chains):
        chain = dataset.chain(c).tolist()
        for k in range(first[order[c]], len(chain)):
            loops[SPLITS[dataset.split[c]]].append((tuple(chain[:k]), chain[k]))
    report = check(dataset)
    for (one, other), (count, share) in report.pairs.items():
        expected = sum(example in set(loops[one]) for example in loops[other])
        assert (count, share) == (expected, pytest.approx(expected / len(loops[other])))
    train = [dataset.chain(i).tolist() for i in dataset.chains_in("train")]
    transitions = {pair for chain in train for pair in pairwise(chain)}
    targets = {target for _, target in transitions}
    for split, values in report.splits.items():
        examples = loops[split]
        continuations = defaultdict(Counter)
        for context, target in examples:
            continuations[context][target] += 1
        best = sum(max(counter.values()) for counter in continuations.values())
        assert values["top1_ceiling"] == pytest.approx(best / len(examples))
        parts = strata(dataset, split)
        assert parts["seen"].tolist() == [(c[-1], t) in transitions for c, t in examples]
        assert parts["unseen_target"].tolist() == [t not in targets for _, t in examples]
        assert not (parts["unseen_target"] & parts["seen"]).any()


def test_a_large_dataset_takes_under_two_seconds_of_a_processor() -> None:
    dataset = make_dataset(11_000, 9_000, max_length=9)
    start = time.process_time()
    check(dataset)
    assert time.process_time() - start < 2


def leaking() -> Dataset:
    return dataset_of({"train": [[0, 1, 2]], "val": [[0, 1, 2]], "test": [[3, 4, 5]]})


@pytest.mark.parametrize(
    ("dataset", "options", "code"),
    [
        (leaking(), [], 0),
        (leaking(), ["--strict"], 1),
        (walk_dataset(), ["--strict"], 0),
    ],
)
def test_check_command(tmp_path: Path, dataset: Dataset, options: list[str], code: int) -> None:
    file, figures = tmp_path / "dataset.npz", tmp_path / "figures.json"
    dataset.save(file)
    result = CliRunner().invoke(
        data, ["check", str(file), "--no-track", "--json", str(figures), *options]
    )
    report = check(dataset, min_context=1)
    assert result.exit_code == code, result.output
    assert result.output == report.to_markdown() + "\n"
    assert json.loads(figures.read_text(encoding="utf-8")) == {
        "file": "dataset.npz",
        "fingerprint": dataset.fingerprint,
        "leaks": report.leaks,
        "warnings": report.warnings,
        "figures": pytest.approx(report.figures(), abs=1e-6),
    }


def test_check_command_imports_older_files_and_says_so(tmp_path: Path) -> None:
    bank = walk_dataset().bank
    old = tmp_path / "old.npz"
    windows = {"context_sequences": bank[None, :5], "target_vectors": bank[5:6]}
    np.savez(old, **windows, **{f"val_{key}": array for key, array in windows.items()})
    result = CliRunner().invoke(data, ["check", str(old), "--no-track", "--strict"])
    assert result.exit_code == 1
    assert "old.npz: fixed windows" in result.output
    assert "1 examples of val (100.0%) also are in train" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["old.npz"]


def test_check_command_refuses_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    result = CliRunner().invoke(data, ["check", str(file), "--no-track"])
    assert (result.exit_code, result.output) == (2, f"Error: {file}: no such file\n")
    leaking().save(file)
    result = CliRunner().invoke(data, ["check", str(file), "--json", str(tmp_path / "a" / "b")])
    assert result.exit_code == 2
    assert "does not exist" in result.output


# --- what training learns of train


@pytest.fixture
def window_leak(tmp_path: Path) -> Path:
    """Windows by split: train's 0 1 2 3 → 4 also teaches 0 1 → 2, which is an example of val."""
    train = [((0, 1, 2, 3), 4), ((5, 6, 7, 8), 9)]
    val = [((0, 1), 2), ((0, 9), 1)]
    arrays = window_file(train, WINDOW_NAMES, "train_") | window_file(val, WINDOW_NAMES, "val_")
    return save(tmp_path, arrays)


def test_a_val_example_inside_a_train_window_is_a_leak(window_leak: Path) -> None:
    dataset = load_dataset(window_leak)
    assert not check(dataset).leaks
    report = check(dataset, min_context=1)
    assert report.leaks
    assert report.pairs == {("train", "val"): (1, 0.5)}
    assert report.splits["train"]["examples"] == 2  # what is evaluated stays as it was
    assert "at least 1 concept, the most that any training learns" in report.to_markdown()
    assert check(dataset, min_context=2).pairs == {("train", "val"): (1, 0.5)}
    assert not check(dataset, min_context=3).leaks


def test_jobs_and_the_command_line_check_what_training_learns(window_leak: Path) -> None:
    logged: list[str] = []
    assert check_dataset_and_log(load_dataset(window_leak), logged.append).leaks
    assert logged[0].startswith("WARNING: 1 examples of val (50.0%) also are in train")
    assert not check_dataset_and_log(load_dataset(window_leak), logged.append, 3).leaks
    result = CliRunner().invoke(data, ["check", str(window_leak), "--strict", "--no-track"])
    assert result.exit_code == 1
    assert "**LEAKS**" in result.output


def test_other_splits_are_compared_by_the_rule_of_the_dataset() -> None:
    chains = {"train": [[7, 8, 9]], "val": [[0, 1, 2, 3, 4]], "test": [[0, 1, 2]]}
    dataset = dataset_of(chains, chain_first=np.array([2, 4, 2], dtype=np.uint8))
    assert not check(dataset, min_context=1).leaks


def test_the_split_of_a_file_without_one_leaks_nothing_that_training_learns(tmp_path: Path) -> None:
    windows = full_windows(60, length=4)
    rows = windows + [(context[:2], context[2]) for context, _ in windows]
    arrays = {"context": padded(rows), "target": targets_of(rows)}
    dataset = load_dataset(save(tmp_path, arrays))
    assert dataset.n_examples("val") > 0
    assert not check(dataset, min_context=1).leaks
