"""Import of older files: pickles, each fault planted and refused, and the command."""

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
from legacy_files import (
    VECTORS,
    Arrays,
    assert_imported,
    examples_in,
    full_windows,
    fuse,
    masked_file,
    padded,
    padded_file,
    ragged,
    rows_by_split,
    save,
    targets_of,
)

from ocp_mamba.cli.data import data
from ocp_mamba.data.dataset import SPLITS, Dataset
from ocp_mamba.data.legacy.importer import import_legacy
from ocp_mamba.data.load import load_dataset
from ocp_mamba.errors import DatasetError

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
    with pytest.raises(DatasetError, match=r"it cannot be read \(BadZipFile"):
        import_legacy(file)
    np.savez(tmp_path / "short.npz", context=np.zeros((2, 1, 768)), target=np.zeros((2, 768)))
    short = tmp_path / "short.npz"
    with zipfile.ZipFile(short) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(short, "w") as archive:
        archive.writestr("context.npy", members["context.npy"][:-100])
        archive.writestr("target.npy", members["target.npy"])
    with pytest.raises(
        DatasetError,
        match=r"'context': .*12,288 bytes, and the member has 12,188",
    ):
        import_legacy(short)
    start = content.find(b"\x93NUMPY")
    content[start : start + 6] = b"NUMPTY"
    file.write_bytes(content)
    with pytest.raises(DatasetError, match="'train_context': its header cannot be read"):
        import_legacy(file)


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
