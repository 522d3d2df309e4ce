"""Import of older files: real `.npz` files of each layout, whole and with each fault planted."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from ocp_mamba.cli_data import data
from ocp_mamba.data import load_dataset
from ocp_mamba.data.file import SPLITS, Dataset, DatasetError
from ocp_mamba.data.legacy import _chains_of, _Examples, import_legacy
from ocp_mamba.data.same import SAME_DISTANCE

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((40, 768))
VECTORS = (VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)).astype(np.float32)
CODES = RNG.standard_normal((40, 16)).astype(np.float32)

Row = tuple[tuple[int, ...], int]
Arrays = dict[str, Any]


def rows_of(seed: int, n: int = 12, longest: int = 5) -> list[Row]:
    rng = np.random.default_rng(seed)
    contexts = [tuple(rng.integers(0, 40, rng.integers(1, longest + 1)).tolist()) for _ in range(n)]
    contexts[0] = tuple(range(longest))  # so that the longest context has `longest` rows
    return [(context, int(rng.integers(0, 40))) for context in contexts]


def targets_of(rows: list[Row]) -> np.ndarray:
    return VECTORS[[target for _, target in rows]]


def padded(rows: list[Row], left: bool = False) -> np.ndarray:
    longest = max(len(context) for context, _ in rows)
    out = np.zeros((len(rows), longest, 768), dtype=np.float32)
    for row, (context, _) in zip(out, rows, strict=True):
        part = slice(longest - len(context), None) if left else slice(0, len(context))
        row[part] = VECTORS[list(context)]
    return out


def masks_of(rows: list[Row]) -> np.ndarray:
    longest = max(len(context) for context, _ in rows)
    return np.arange(longest) < np.array([[len(context)] for context, _ in rows])


def ragged(rows: list[Row]) -> np.ndarray:
    out = np.empty(len(rows), dtype=object)
    out[:] = [VECTORS[list(context)] for context, _ in rows]
    return out


def rows_by_split(longest: int = 5) -> dict[str, list[Row]]:
    return {split: rows_of(seed, longest=longest) for seed, split in enumerate(SPLITS)}


def padded_file(by_split: dict[str, list[Row]]) -> Arrays:
    arrays: Arrays = {}
    for split, rows in by_split.items():
        arrays[f"{split}_context"] = padded(rows)
        arrays[f"{split}_target"] = targets_of(rows)
        arrays[f"{split}_tmd"] = CODES[: len(rows)].copy()
    return arrays


def masked_file(by_split: dict[str, list[Row]]) -> Arrays:
    arrays: Arrays = {}
    for split, rows in by_split.items():
        arrays[f"{split}_contexts"] = padded(rows)
        arrays[f"{split}_targets"] = targets_of(rows)
        arrays[f"{split}_masks"] = masks_of(rows)
    return arrays


def full_windows(n: int, length: int = 5, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, 40, (n, length + 1)).tolist()
    return [(tuple(draw[:-1]), draw[-1]) for draw in draws]


def window_file(rows: list[Row], names: tuple[str, str], prefix: str = "") -> Arrays:
    return {prefix + names[0]: padded(rows), prefix + names[1]: targets_of(rows)}


WINDOW_NAMES = ("context_sequences", "target_vectors")


def save(path: Path, arrays: Arrays) -> Path:
    file = path / "old.npz"
    np.savez(file, **arrays)
    return file


def examples_in(dataset: Dataset, split: str) -> Counter[Row]:
    """The dataset's examples, as rows of VECTORS found by their vectors."""
    known = np.argmax(dataset.bank @ VECTORS.T, axis=1)
    assert np.allclose(dataset.bank, VECTORS[known], atol=1e-3)
    examples = dataset.examples(split)
    return Counter(
        (tuple(known[dataset.chain(c)[:k]].tolist()), int(known[target]))
        for c, k, target in zip(examples.chain, examples.position, examples.target, strict=True)
    )


def assert_imported(dataset: Dataset, by_split: dict[str, list[Row]]) -> None:
    for split, rows in by_split.items():
        assert examples_in(dataset, split) == Counter(rows)


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


# --- pickles


def test_ragged_contexts_are_opened_only_when_allowed(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split) | {f"{s}_context": ragged(r) for s, r in by_split.items()}
    file = save(tmp_path, arrays)
    with pytest.raises(DatasetError, match=r"'train_context'.*pickle.*any code.*--allow-pickle"):
        import_legacy(file)
    with pytest.raises(DatasetError, match="allow-pickle"):
        load_dataset(file)
    dataset, report = import_legacy(file, allow_pickle=True)
    assert_imported(dataset, by_split)
    assert any("opened as pickles: train_context" in note for note in report.notes)
    assert load_dataset(file, allow_pickle=True).fingerprint == dataset.fingerprint


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_pickles_of_keys_that_are_not_needed_are_never_opened(tmp_path: Path) -> None:
    hit = tmp_path / "hit"
    bomb = np.array([Bomb(hit)], dtype=object)
    arrays = padded_file(rows_by_split()) | {"train_texts": bomb}
    _, report = import_legacy(save(tmp_path, arrays), allow_pickle=True)
    assert not hit.exists()
    assert any("keys not read: train_texts" in note for note in report.notes)
    pickle.loads(pickle.dumps(Bomb(hit)))  # the bomb is live
    assert hit.exists()


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros(768, np.float32), r"float32 \(768,\) found in example 2, float \(L, 768"),
        (np.zeros((3, 384), np.float32), r"\(3, 384\) found in example 2"),
        (np.zeros((3, 784), np.float32), r"widths \[768, 784\] found, one width wanted"),
        ("text", r"found in example 2"),
    ],
)
def test_ragged_contexts_of_other_shapes(tmp_path: Path, item: Any, message: str) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    arrays["val_context"] = ragged(by_split["val"])
    arrays["val_context"][2] = item
    with pytest.raises(DatasetError, match="'val_context'.*" + message):
        import_legacy(save(tmp_path, arrays), allow_pickle=True)


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
    assert any("not of unit length (norms from 1 to 3.5): normalised" in n for n in report.notes)


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


def fuse(vectors: np.ndarray, codes: np.ndarray, end: str) -> np.ndarray:
    parts = [vectors, codes] if end == "first" else [codes, vectors]
    return np.concatenate(parts, axis=-1)


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
    # normalised as one vector with codes of norm 4: the first 768 numbers have norm 0.999
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


# --- what is refused


def without(*keys: str) -> Callable[[Arrays], None]:
    def plant(arrays: Arrays) -> None:
        for key in keys:
            del arrays[key]

    return plant


def put(key: str, value: Any) -> Callable[[Arrays], None]:
    def plant(arrays: Arrays) -> None:
        arrays[key] = value

    return plant


def spoil(key: str, index: Any, value: float) -> Callable[[Arrays], None]:
    def plant(arrays: Arrays) -> None:
        arrays[key][index] = value

    return plant


ONES = np.ones((12, 5, 768), np.float32)

PADDED_FAULTS = {
    "target missing": (
        without("val_target"),
        r"'val_target'\] are missing; keys found.*val_context",
    ),
    "val missing": (without("val_context", "val_target", "val_tmd"), "keys of val are missing"),
    "tmd for some": (without("test_tmd"), r"for some splits only: the keys \['test_tmd'\]"),
    "two trainings": (put("context", ONES), "'context' and 'train_context' could be"),
    "unknown prefix": (put("valid_context", ONES), r"unknown prefixes \['valid'\]"),
    "two layouts": (put("context_sequences", ONES), "several layouts mixed"),
    "384-D": (put("val_context", ONES[..., :384]), r"'val_context': float32 \(12, 5, 384\).*768"),
    "2-D context": (put("val_context", ONES[:, 0]), r"\(12, 768\) found.*\(12, L, 768"),
    "0-D context": (put("val_context", np.float32(1)), r"'val_context': float32 \(\) found"),
    "3-D target": (put("val_target", ONES[:, :1]), r"'val_target': float32 \(12, 1, 768\) found"),
    "target of 16": (put("val_target", ONES[:, 0, :16]), r"'val_target': .*\(12, 16\) found"),
    "N mismatch": (
        put("val_target", ONES[:11, 0]),
        r"'val_target': float32 \(11, 768\) found.*\(12, 768.*wanted, as 'val_context' has 12",
    ),
    "tmd width": (put("val_tmd", ONES[:, 0, :15]), r"'val_tmd': float32 \(12, 15\).*\(12, 16\)"),
    "integers": (put("val_context", ONES.astype(int)), "'val_context': int64 .* float32, float64"),
    "text": (put("val_target", np.full((12, 768), "x")), "'val_target': <U1 .* wanted"),
    "no rows": (put("val_context", ONES[:0]), r"'val_context': float32 \(0, 5, 768\) found.*one"),
    "no steps": (put("val_context", ONES[:, :0]), r"'val_context': float32 \(12, 0, 768\) found"),
    "too long": (
        put("val_context", np.ones((12, 256, 768), np.float16)),
        "a context of 256 rows found in example 0, 255 or fewer wanted",
    ),
    "NaN context": (
        spoil("val_context", (0, 1, 5), np.nan),
        r"'val_context': NaN, infinity .* in 1 of \d+ rows, the first in example 0",
    ),
    "NaN later": (spoil("train_context", (4, 0), np.nan), "'train_context'.* in example 4"),
    "inf target": (spoil("test_target", (7, 5), np.inf), "'test_target'.* the first in example 7"),
    "NaN tmd": (spoil("test_tmd", (3, 2), np.nan), "'test_tmd'.* the first in example 3"),
    "beyond float32": (
        put("val_target", np.full((12, 768), 1e300)),
        "'val_target': .*beyond float32 in 12 of 12 rows",
    ),
    "all targets zero": (spoil("val_target", slice(None), 0), "no example is left of 12"),
    "object targets": (put("val_target", np.full(12, None)), "'val_target': it is an object array"),
}


@pytest.mark.parametrize("fault", PADDED_FAULTS)
def test_padded_files_with_faults(tmp_path: Path, fault: str) -> None:
    plant, message = PADDED_FAULTS[fault]
    arrays = padded_file(rows_by_split())
    plant(arrays)
    with pytest.raises(DatasetError, match=message) as caught:
        import_legacy(save(tmp_path, arrays))
    assert str(caught.value).startswith(f"{tmp_path / 'old.npz'}: ")


MASK_FAULTS = {
    "mask missing": (without("val_masks"), r"'val_masks'\] are missing"),
    "mask shape": (
        put("val_masks", np.ones((12, 4), bool)),
        r"'val_masks': bool \(12, 4\) found, bool or 0/1 \(12, 5\) wanted",
    ),
    "mask values": (spoil("val_masks", (0, 0), 2), "'val_masks': the value 2 found"),
    "holes": (spoil("val_masks", (0, 2), 0), "holes in 1 examples, the first in example 0"),
    "NaN inside": (spoil("val_contexts", (0, 0), np.nan), "'val_contexts': NaN"),
}


@pytest.mark.parametrize("fault", MASK_FAULTS)
def test_masked_files_with_faults(tmp_path: Path, fault: str) -> None:
    plant, message = MASK_FAULTS[fault]
    arrays = masked_file(rows_by_split())
    arrays["val_masks"] = arrays["val_masks"].astype(np.int64)
    plant(arrays)
    with pytest.raises(DatasetError, match=message):
        import_legacy(save(tmp_path, arrays))


def test_masks_turned_over(tmp_path: Path) -> None:
    by_split = rows_by_split()
    for rows in by_split.values():
        rows[0] = ((1,), 2)
    longest = {s: max(len(c) for c, _ in rows) for s, rows in by_split.items()}
    arrays = masked_file(by_split)
    for split in SPLITS:
        arrays[f"{split}_contexts"] = np.pad(arrays[f"{split}_contexts"], ((0, 0), (0, 1), (0, 0)))
        arrays[f"{split}_masks"] = np.arange(longest[split] + 1) >= np.array(
            [[len(c)] for c, _ in by_split[split]]
        )
    with pytest.raises(DatasetError, match=r"'train_masks'.*turn the masks over"):
        import_legacy(save(tmp_path, arrays))


def test_padding_on_both_sides(tmp_path: Path) -> None:
    by_split = rows_by_split()
    arrays = padded_file(by_split)
    arrays["train_context"][:6] = padded(by_split["train"], left=True)[:6]
    with pytest.raises(DatasetError, match=r"'train_context'.*padding on one side wanted"):
        import_legacy(save(tmp_path, arrays))


def test_files_that_are_no_npz(tmp_path: Path) -> None:
    whole = save(tmp_path, padded_file(rows_by_split())).read_bytes()
    broken = tmp_path / "broken.npz"
    for content in (b"", b"no zip at all", whole[: len(whole) // 2], whole[:-10]):
        broken.write_bytes(content)
        with pytest.raises(DatasetError, match=r"broken.npz: not a whole .npz file"):
            import_legacy(broken)
    with pytest.raises(DatasetError, match="no such file"):
        import_legacy(tmp_path / "absent.npz")
    with pytest.raises(DatasetError, match="no such file"):
        import_legacy(tmp_path)
    np.savez(broken, a=np.zeros(3), b=np.zeros(3))
    with pytest.raises(DatasetError, match=r"no known layout: keys found: \['a', 'b'\]. Wanted"):
        import_legacy(broken)


def test_damage_inside_a_whole_zip(tmp_path: Path) -> None:
    file = save(tmp_path, padded_file(rows_by_split()))
    content = bytearray(file.read_bytes())
    at = content.find(VECTORS[rows_by_split()["val"][3][1]].tobytes())
    content[at + 9] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(DatasetError, match=r"its data cannot be read \(BadZipFile"):
        import_legacy(file)
    np.savez(tmp_path / "short.npz", context=np.zeros((2, 1, 768)), target=np.zeros((2, 768)))
    short = tmp_path / "short.npz"
    with zipfile.ZipFile(short) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(short, "w") as archive:
        archive.writestr("context.npy", members["context.npy"][:-100])
        archive.writestr("target.npy", members["target.npy"])
    with pytest.raises(DatasetError, match="'context': its data cannot be read"):
        import_legacy(short)
    start = content.find(b"\x93NUMPY")
    content[start : start + 6] = b"NUMPTY"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="'train_context': its header cannot be read"):
        import_legacy(file)


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


# --- the command


def run(*arguments: Any) -> Result:
    return CliRunner().invoke(data, [str(argument) for argument in arguments])


def test_import_command(tmp_path: Path) -> None:
    by_split = rows_by_split()
    old = save(tmp_path, padded_file(by_split))
    new = tmp_path / "new.npz"
    result = run("import", old, "--out", new, "--encoder-name", "my/encoder")
    assert result.exit_code == 0, result.output
    assert "ragged or zero-padded contexts" in result.output
    assert f"Wrote {new}" in result.output
    dataset = Dataset.load(new)
    assert_imported(dataset, by_split)
    assert dataset.meta["encoder"]["name"] == "my/encoder"


def test_import_command_takes_pickles_and_the_fused_end(tmp_path: Path) -> None:
    rows = full_windows(30)
    arrays: Arrays = {"context": ragged(rows), "target": targets_of(rows)}
    ones = np.ones(16, np.float32)
    for i, context in enumerate(arrays["context"]):
        arrays["context"][i] = fuse(context * np.float32(2), np.tile(ones, (5, 1)), "last")
    old, new = save(tmp_path, arrays), tmp_path / "new.npz"
    for refused in ([], ["--allow-pickle"], ["--fused", "last"]):
        assert run("import", old, "--out", new, *refused).exit_code == 2
        assert not new.exists()
    options = ["--allow-pickle", "--fused", "last", "--seed", 7]
    result = run("import", old, "--out", new, *options)
    assert result.exit_code == 0, result.output
    dataset = Dataset.load(new)
    assert dataset.meta["seed"] == 7
    assert sum((examples_in(dataset, s) for s in SPLITS), Counter()) == Counter(rows)


def test_import_command_refuses_in_one_line_and_writes_nothing(tmp_path: Path) -> None:
    arrays = padded_file(rows_by_split())
    arrays["val_target"][2] = np.nan
    old, new = save(tmp_path, arrays), tmp_path / "new.npz"
    result = run("import", old, "--out", new)
    assert result.exit_code == 2
    assert result.output.startswith(f"Error: {old}: key 'val_target': NaN")
    assert "Traceback" not in result.output
    assert not new.exists()
    content = old.read_bytes()
    assert "name another file" in run("import", old, "--out", old).output
    assert old.read_bytes() == content
    assert "does not exist" in run("import", old, "--out", tmp_path / "no" / "new.npz").output
    assert "no such file" in run("import", tmp_path / "absent.npz", "--out", new).output
    assert sorted(tmp_path.iterdir()) == [old]
