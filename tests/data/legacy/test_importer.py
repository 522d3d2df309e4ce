"""Import of older files: each layout whole, what is repaired, and that no example is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from legacy_files import (
    CODES,
    RNG,
    VECTORS,
    WINDOW_NAMES,
    Arrays,
    Row,
    assert_imported,
    examples_in,
    full_windows,
    fuse,
    masked_file,
    padded,
    padded_file,
    rows_by_split,
    save,
    targets_of,
    window_file,
)

from ocp_mamba.data.analysis.duplicates import SAME_DISTANCE
from ocp_mamba.data.dataset import SPLITS
from ocp_mamba.data.legacy.importer import _chains_of, _Examples, import_legacy
from ocp_mamba.data.load import load_dataset
from ocp_mamba.errors import DatasetError

# --- each layout, whole


def test_zero_padded_contexts_with_tmd(tmp_path: Path) -> None:
    by_split = rows_by_split()
    dataset, report = import_legacy(save(tmp_path, padded_file(by_split)))
    assert_imported(dataset, by_split)
    assert dataset.chain_tmd is not None
    for split, rows in by_split.items():
        found = Counter(dataset.chain_tmd[c].tobytes() for c in dataset.examples(split).chain)
        assert found == Counter(code.tobytes() for code in CODES[: len(rows)])
    assert any("padded on the right" in note for note in report.notes)
    assert report.read == dict.fromkeys(SPLITS, (12, 0))
    assert {s: n for s, (n, _) in report.imported.items()} == dict.fromkeys(SPLITS, 12)


def test_left_padding_is_found(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    arrays["val_context"] = padded(by_split["val"], left=True)
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert any("val_context: padded on the left" in note for note in report.notes)


def test_masks(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = masked_file(by_split)
    arrays["train_contexts"][~arrays["train_masks"]] = np.nan  # what a mask hides does not matter
    arrays["val_masks"] = arrays["val_masks"].astype(np.float32)
    dataset, _ = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert dataset.chain_tmd is None


def test_masks_padded_on_the_left(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = masked_file(by_split)
    arrays["test_contexts"] = padded(by_split["test"], left=True)
    arrays["test_masks"] = arrays["test_masks"][:, ::-1]
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert any("test_masks: padded on the left" in note for note in report.notes)


@pytest.mark.parametrize("names", [WINDOW_NAMES, ("contexts", "targets")])
@pytest.mark.parametrize("length", [1, 5])
def test_windows_with_splits(tmp_path: Path, names: tuple[str, str], length: int) -> None:
    by_split = {s: full_windows(9, length, seed) for seed, s in enumerate(SPLITS)}
    arrays = window_file(by_split["train"], names)
    arrays |= window_file(by_split["val"], names, "val_")
    arrays |= window_file(by_split["test"], names, "test_")
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert "fixed windows" in report.layout
    assert dataset.meta["texts"] == "placeholder"
    assert dataset.texts[3] == "concept 000003"


def test_windows_without_splits_are_split_by_seed(tmp_path: Path) -> None:
    rows = full_windows(400)
    rows += rows[:20]
    file = save(tmp_path, window_file(rows, WINDOW_NAMES))
    dataset, report = import_legacy(file, seed=3)
    found = sum((examples_in(dataset, split) for split in SPLITS), Counter())
    assert found == Counter(rows)
    share = dataset.n_examples("train") / len(rows)
    assert 0.6 < share < 0.8
    assert not set(examples_in(dataset, "train")) & set(examples_in(dataset, "val"))
    assert any("seed 3" in note for note in report.notes)
    again, _ = import_legacy(file, seed=3)
    other, _ = import_legacy(file, seed=4)
    assert again.fingerprint == dataset.fingerprint != other.fingerprint


def test_a_split_that_shared_prefixes_starve_is_noted(tmp_path: Path) -> None:
    rows = [((1, 2), 3)] * 50  # one example again and again must stay in one split
    rows += [((4,), 5), ((6,), 7)]
    dataset, report = import_legacy(save(tmp_path, window_file(rows, ("context", "target"))))
    assert dataset.n_examples("train") >= 50
    assert any("source imported: val got" in note for note in report.notes)


def test_a_made_split_keeps_repeats_of_short_rows_together(tmp_path: Path) -> None:
    rows = [((a,), b) for a in range(10) for b in range(10, 16)] * 4
    dataset, _ = import_legacy(save(tmp_path, window_file(rows, WINDOW_NAMES)))
    found = [set(examples_in(dataset, split)) for split in SPLITS]
    assert all(found)
    assert sum(len(part) for part in found) == 60


def test_a_file_without_test_split_says_so(tmp_path: Path) -> None:
    by_split = rows_by_split()
    del by_split["test"]
    dataset, report = import_legacy(save(tmp_path, padded_file(by_split)))
    assert_imported(dataset, by_split)
    assert dataset.n_examples("test") == 0
    assert any("no examples in test" in note for note in report.notes)


def test_imported_dataset_survives_its_own_file(tmp_path: Path) -> None:
    old = save(tmp_path, padded_file(rows_by_split()))
    dataset, _ = import_legacy(old, encoder_name="some/encoder")
    dataset.save(tmp_path / "new.npz")
    again = load_dataset(tmp_path / "new.npz")
    assert again.fingerprint == dataset.fingerprint == load_dataset(old).fingerprint
    assert again.meta["encoder"] == {"name": "some/encoder", "weight_hash": "unknown"}
    with pytest.raises(DatasetError, match="already is a dataset file"):
        import_legacy(tmp_path / "new.npz")


# --- what is repaired


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_precisions(tmp_path: Path, dtype: type) -> None:
    by_split = rows_by_split()
    arrays = {key: array.astype(dtype) for key, array in padded_file(by_split).items()}
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert dataset.bank.dtype == np.float32
    assert f"train_context: {np.dtype(dtype)} brought to float32" in report.notes


def test_unnormalised_rows(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    for key in ("train_context", "train_target", "val_target"):
        arrays[key] = arrays[key] * np.float32(3.5)
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert np.allclose(np.linalg.norm(dataset.bank, axis=1), 1, atol=1e-6)
    used = {v for rows in by_split.values() for context, t in rows for v in (*context, t)}
    assert dataset.n_concepts == len(used)  # 3.5 v and v are one concept
    assert any("not of unit length (norms from 1 to 3.5): normalized" in n for n in report.notes)


def test_one_concept_in_several_precisions_is_one_bank_row(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    arrays["train_target"] = arrays["train_target"].astype(np.float16)
    arrays["val_context"] = arrays["val_context"].astype(np.float64) * 1.7
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    used = {v for rows in by_split.values() for context, t in rows for v in (*context, t)}
    assert dataset.n_concepts == report.concepts == len(used)
    assert any("equal another one but for scale and rounding" in note for note in report.notes)


def test_alike_but_different_concepts_stay_apart(tmp_path: Path) -> None:
    rows = full_windows(30)
    arrays = window_file(rows, WINDOW_NAMES)
    step = RNG.standard_normal(768)
    step *= 3 * SAME_DISTANCE / np.linalg.norm(step)
    near = VECTORS[rows[0][1]] + step.astype(np.float32)
    arrays["target_vectors"][0] = near
    without, _ = import_legacy(save(tmp_path, window_file(rows, WINDOW_NAMES)))
    dataset, _ = import_legacy(save(tmp_path, arrays))
    assert dataset.n_concepts == without.n_concepts + 1


@pytest.mark.parametrize("where", ["context", "target"])
def test_examples_with_zero_rows_are_dropped_and_counted(tmp_path: Path, where: str) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    if where == "context":
        arrays["train_context"][0, 2] = 0  # inside a context of 5 rows
        arrays["train_context"][3] = 0  # no context at all
        dropped = {0, 3}
    else:
        arrays["train_target"][[1, 4]] = 0
        dropped = {1, 4}
    dataset, report = import_legacy(save(tmp_path, arrays))
    by_split["train"] = [r for i, r in enumerate(by_split["train"]) if i not in dropped]
    assert_imported(dataset, by_split)
    assert report.read["train"] == (12, 2)
    assert any(f"train_{where}: dropped" in note for note in report.notes)


def test_zero_rows_in_windows(tmp_path: Path) -> None:
    rows = full_windows(40)
    arrays = window_file(rows, WINDOW_NAMES) | window_file(rows, WINDOW_NAMES, "val_")
    arrays["context_sequences"][7, 4] = 0  # the last row: no padding, as windows have none
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert examples_in(dataset, "train") == Counter(rows[:7] + rows[8:])
    assert report.read["train"] == (40, 1)
    arrays["context_sequences"][:10, 4] = 0
    with pytest.raises(DatasetError, match=r"all-zero rows in 10 of 40 windows.*\[split_\]masks"):
        import_legacy(save(tmp_path, arrays))


@pytest.mark.parametrize("end", ["first", "last"])
@pytest.mark.parametrize("fused_targets", [True, False])
@pytest.mark.parametrize("zero_codes", [True, False])
def test_fused_tmd(tmp_path: Path, end: str, fused_targets: bool, zero_codes: bool) -> None:
    by_split = {s: full_windows(10, seed=seed) for seed, s in enumerate(SPLITS)}
    codes = CODES[:10] * (not zero_codes)
    arrays: Arrays = {}
    for split, rows in by_split.items():
        repeated = np.repeat(codes[:, None], 5, axis=1)
        arrays[f"{split}_context"] = fuse(padded(rows), repeated, end)
        targets = targets_of(rows)
        arrays[f"{split}_target"] = fuse(targets, codes, end) if fused_targets else targets
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert any(f"vector comes {end} (found by its unit norm)" in note for note in report.notes)
    assert dataset.chain_tmd is not None
    examples = dataset.examples("train")
    found = Counter(dataset.chain_tmd[c].tobytes() for c in examples.chain)
    assert found == Counter(code.tobytes() for code in codes)
    zero = 30 if zero_codes else 0
    assert any(f"{zero} of 30 examples have all zeros" in note for note in report.notes)


def test_fused_rows_that_do_not_tell_their_order(tmp_path: Path) -> None:
    rows = full_windows(10)
    arrays = window_file(rows, WINDOW_NAMES)
    # normalized as one vector with codes of norm 4: the first 768 numbers have norm 0.999
    context = fuse(arrays["context_sequences"], np.ones((10, 5, 16), np.float32), "last")
    arrays["context_sequences"] = context / np.float32(np.sqrt(17))
    file = save(tmp_path, arrays)
    with pytest.raises(DatasetError, match=r"'context_sequences'.*784.*--fused first or --fused"):
        import_legacy(file)
    dataset, report = import_legacy(file, fused="last")
    assert sum((examples_in(dataset, s) for s in SPLITS), Counter()) == Counter(rows)
    assert any("comes last (as told)" in note for note in report.notes)
    with pytest.raises(ValueError, match="fused must be"):
        import_legacy(file, fused="middle")


def test_fused_codes_that_change_within_a_context_come_from_its_last_row(tmp_path: Path) -> None:
    rows = full_windows(20)
    arrays = window_file(rows, WINDOW_NAMES)
    codes = np.random.default_rng(5).standard_normal((20, 5, 16)).astype(np.float32)
    arrays["context_sequences"] = fuse(arrays["context_sequences"], codes, "first")
    arrays |= window_file(rows, WINDOW_NAMES, "val_")
    arrays["val_context_sequences"] = arrays["context_sequences"]
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert dataset.chain_tmd is not None
    examples = dataset.examples("train")
    found = Counter(dataset.chain_tmd[c].tobytes() for c in examples.chain)
    assert found == Counter(code.tobytes() for code in codes[:, -1])
    assert any("change within 20 contexts" in note for note in report.notes)


def test_a_tmd_array_wins_over_fused_codes(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    for split in SPLITS:
        target = arrays[f"{split}_target"]
        arrays[f"{split}_target"] = fuse(target, np.ones((12, 16), np.float32), "last")
        context = arrays[f"{split}_context"]
        codes = np.ones((*context.shape[:2], 16), np.float32) * context.any(axis=2, keepdims=True)
        arrays[f"{split}_context"] = fuse(context, codes, "last")
    dataset, report = import_legacy(save(tmp_path, arrays))
    assert_imported(dataset, by_split)
    assert dataset.chain_tmd is not None
    assert {code.tobytes() for code in dataset.chain_tmd} == {c.tobytes() for c in CODES[:12]}
    assert any("left out for the TMD array" in note for note in report.notes)


def test_a_needless_fused_is_noted(tmp_path: Path) -> None:
    _, report = import_legacy(save(tmp_path, padded_file(rows_by_split())), fused="first")
    assert any("fused=first was given, but no rows are 784-D" in note for note in report.notes)


def test_the_report_reads_well(tmp_path: Path) -> None:
    arrays = padded_file(rows_by_split()) | {"epoch": np.zeros(1)}
    arrays["train_target"][1] = 0
    _, report = import_legacy(save(tmp_path, arrays))
    text = report.to_markdown()
    assert "old.npz: ragged or zero-padded contexts (context, target)" in text
    assert "- keys not read: epoch" in text
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["train", "12", "1"] in lines
    assert any(line[:2] == ["train", "11"] for line in lines)
    assert f"became {report.concepts} concepts." in text


def test_fused_in_two_orders_or_in_one_split_only(tmp_path: Path) -> None:
    by_split = {s: full_windows(10, seed=seed) for seed, s in enumerate(SPLITS)}
    arrays: Arrays = {}
    for split, rows in by_split.items():
        arrays |= window_file(rows, ("context", "target"), f"{split}_")
    codes = np.ones((10, 5, 16), np.float32)
    arrays["train_context"] = fuse(padded(by_split["train"]), codes, "first")
    with pytest.raises(DatasetError, match="one width in all splits"):
        import_legacy(save(tmp_path, arrays))
    for split in ("val", "test"):
        arrays[f"{split}_context"] = fuse(padded(by_split[split]), codes, "last")
    with pytest.raises(DatasetError, match="first in one split and last in another"):
        import_legacy(save(tmp_path, arrays))


# --- properties


def chain_examples(seed: int, with_tmd: bool) -> _Examples:
    """Few concepts and short contexts, so that prefixes, branches and repeats abound."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    lengths = rng.integers(1, 6, n)
    return _Examples(
        rng.integers(0, 2, lengths.sum()),
        lengths,
        rng.integers(0, 2, n),
        rng.integers(0, 2, (n, 16)).astype(np.float32) if with_tmd else None,
    )


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_chains_predict_exactly_the_examples(seed: int, with_tmd: bool) -> None:
    part = chain_examples(seed, with_tmd)
    if part.tmd is not None:
        part.tmd[:, 1:] = 0
    chains = _chains_of(part)
    cuts = np.split(part.contexts, np.cumsum(part.lengths)[:-1])
    before = Counter(
        (tuple(cut), int(target), b"" if part.tmd is None else part.tmd[i].tobytes())
        for i, (cut, target) in enumerate(zip(cuts, part.targets, strict=True))
    )
    after = Counter(
        (chain[:k], chain[k], b"" if chains.tmd is None else chains.tmd[c].tobytes())
        for c, (chain, first) in enumerate(zip(chains.concepts, chains.first, strict=True))
        for k in range(first, len(chain))
    )
    assert after == before


def test_all_prefixes_of_a_chain_become_that_chain() -> None:
    chain = (4, 7, 1, 9, 3, 8)
    prefixes = [chain[:k] for k in (4, 2, 5, 3)]
    part = _Examples(
        np.concatenate(prefixes),
        np.array([len(p) for p in prefixes]),
        np.array([chain[len(p)] for p in prefixes]),
        None,
    )
    chains = _chains_of(part)
    assert chains.concepts == [chain]
    assert chains.first == [2]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_import_keeps_the_multiset_of_examples(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    by_split: dict[str, list[Row]] = {}
    for split in SPLITS:
        walks = [rng.integers(0, 40, 6).tolist() for _ in range(3)]
        rows = [(tuple(w[:k]), w[k]) for w in walks for k in range(1, 6) if rng.random() < 0.7]
        rows.append((tuple(walks[0][:5]), walks[0][5]))
        by_split[split] = [rows[i] for i in rng.permutation(len(rows))]
    arrays: Arrays = {}
    for split, rows in by_split.items():
        arrays |= window_file(rows, ("context", "target"), f"{split}_")
    dataset, _ = import_legacy(save(tmp_path_factory.mktemp("old"), arrays))
    assert_imported(dataset, by_split)
