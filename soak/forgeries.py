"""Files that are whole, with a right checksum, and hold what no writer of ours writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from string import ascii_lowercase, digits
from typing import Any

import numpy as np
import torch

from ocp_mamba.system.tensor_file import COMMENT_BYTES, LENGTH_FIELD, MARK, write_tensors
from soak.mutations import (
    EVIL_JSON,
    EVIL_TOML,
    EVIL_YAML,
    Raw,
    changed_lines,
    changed_tree,
    damaged,
    to_json,
)

BOMB_ROWS = 60_000
"""Rows of 768 zeros, 176 MiB in float32: a file of 180 KB."""


class Payload:
    """Makes a file in the working folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch unpickled",)


def forge(rng: Random, kind: str, seed: Path, made: Path) -> None:
    """Write a forged file or folder out of a whole one."""
    FORGERS[kind](rng, seed, made)


# --- npz -------------------------------------------------------------------------------------


def _npz(rng: Random, seed: Path, made: Path) -> None:
    with zipfile.ZipFile(seed) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice((_other_array, _other_array, _other_header, _other_meta, _other_members))(
            rng, members
        )
    how = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(made, "w", rng.choice((how, how, how, zipfile.ZIP_LZMA))) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        if rng.random() < 0.05:
            archive.writestr(zipfile.ZipInfo(next(iter(members), "a.npy")), b"twice")
    if rng.random() < 0.1:
        _lie_about_sizes(rng, made)


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.lib.format.write_array(content, array, allow_pickle=True)
    return content.getvalue()


def _array(content: bytes) -> np.ndarray:
    array: np.ndarray = np.lib.format.read_array(io.BytesIO(content))
    return array


def _other_array(rng: Random, members: dict[str, bytes]) -> None:
    name = rng.choice(list(members))
    try:
        array = _array(members[name])
    except Exception:  # changed before
        return
    flat = array.reshape(-1).copy()
    extreme: list[Any] = [0, -1, 2**31 - 1, 2**63 - 1, -(2**63), float("nan"), float("inf"), 1e-45]
    with np.errstate(all="ignore"):
        changed: list[Callable[[], np.ndarray]] = [
            lambda: array.astype(rng.choice(("<f8", "<f2", ">f4", "<i8", "|b1", "<c8", "<U3"))),
            lambda: array[: rng.randrange(max(1, len(array) if array.ndim else 1))],
            lambda: np.concatenate([array, array[:1]]) if array.ndim else array,
            lambda: array[None],
            lambda: np.asfortranarray(array.reshape(-1, 2)) if array.size % 2 == 0 else flat,
            lambda: np.array([Payload()], dtype=object),
            lambda: np.zeros(3, dtype=[("a", "<f4"), ("b", "<U5")]),
            lambda: np.zeros((0, *array.shape[1:]), array.dtype),
            lambda: _with_value(rng, flat, extreme).reshape(array.shape),
            lambda: _with_value(rng, flat, extreme).reshape(array.shape),
            lambda: np.zeros((BOMB_ROWS, 768), np.float32),
        ]
        try:
            members[name] = _npy(rng.choices(changed, weights=[*[4] * 10, 0.2])[0]())
        except Exception:  # this array cannot be changed in this way
            members[name] = _npy(np.zeros(3))


def _with_value(rng: Random, flat: np.ndarray, extreme: list[Any]) -> np.ndarray:
    """The array with some of its bytes random, or one value extreme."""
    if rng.random() < 0.5 or flat.dtype.kind == "U":
        content = bytearray(flat.tobytes())
        for _ in range(4):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return np.frombuffer(bytes(content), flat.dtype)
    flat[rng.randrange(flat.size)] = np.array(rng.choice(extreme)).astype(flat.dtype)
    return flat


def _other_header(rng: Random, members: dict[str, bytes]) -> None:
    name = rng.choice(list(members))
    content = members[name]
    length = struct.unpack("<H", content[8:10])[0] if len(content) > 10 else 0
    text = content[10 : 10 + length]
    text = rng.choice((
        text.replace(b"(", b"(9"), text.replace(b"(", b"(-"), text.replace(b"(", b"(" * 400),
        text.replace(b"<f4", b"|O"), text.replace(b"<f4", b"<U0"), text.replace(b"<", b">"),
        text.replace(b"False", b"True"), text.replace(b"'shape'", b"'shapes'"), b"", b"{}",
        b"__import__('os').system('touch unpickled')", text.replace(b"(", b"(" + b"9" * 5000),
        damaged(rng, text or b"x", b"{'descr': 3}"),
    ))  # fmt: skip
    version = rng.choice((content[6:8], content[6:8], b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    start = content[:6] + version
    members[name] = start + struct.pack("<H", len(text) % 65536) + text + content[10 + length :]


def _other_meta(rng: Random, members: dict[str, bytes]) -> None:
    if "meta.npy" not in members:
        return
    try:
        meta = json.loads(str(_array(members["meta.npy"])))
    except Exception:  # changed before
        return
    text = to_json(changed_tree(rng, meta, EVIL_JSON))
    array = np.array(text)
    if rng.random() < 0.2:
        codes = array.reshape(1).view(np.uint32).copy()
        codes[rng.randrange(len(codes))] = rng.choice((0x110000, 0xFFFFFFFF, 0xD800, 0))
        array = codes.view(array.dtype).reshape(())
    members["meta.npy"] = _npy(array)


def _other_members(rng: Random, members: dict[str, bytes]) -> None:
    name = rng.choice(list(members))
    content = members[name]
    if rng.random() < 0.7:
        del members[name]
    new = rng.choice((
        "", "../x.npy", "/x.npy", "x.txt", "a/b.npy", "..\\x.npy", "context.npy", "masks.npy",
        "chain_tmd.npy", "chain_relation.npy", "é.npy", "x" * 300 + ".npy", "val_target.npy",
    ))  # fmt: skip
    if new:
        members[new] = content


def _lie_about_sizes(rng: Random, made: Path) -> None:
    """Change sizes in the zip's directory, which are the first that a reader sees."""
    content = bytearray(made.read_bytes())
    at = content.find(b"PK\x01\x02", len(content) // 2)
    if at >= 0:
        size = rng.choice((0, 1, 2**31, 2**32 - 2, 2**28))
        content[at + 24 : at + 28] = struct.pack("<I", size)
        made.write_bytes(content)


# --- shards ----------------------------------------------------------------------------------


def _shards(rng: Random, seed: Path, made: Path) -> None:
    shutil.copytree(seed, made)
    if rng.random() < 0.75:
        text = (made / "meta.json").read_text(encoding="utf-8")
        listed = changed_tree(rng, json.loads(text), EVIL_JSON)
        if isinstance(listed, dict) and rng.random() < 0.8:
            listed.pop("checksum", None)
        (made / "meta.json").write_text(to_json(listed), encoding="utf-8")
        return
    path = rng.choice(sorted(made.glob("*.npy")))
    content = path.read_bytes()
    path.unlink()
    way = rng.randrange(5)
    if way == 0:
        path.mkdir()
    elif way == 1:
        path.symlink_to(path.name)
    elif way == 2:
        path.write_bytes(content + content[4096:])
    elif way == 3:
        path.write_bytes(_npy(np.array([Payload()], dtype=object)))


def damage_folder(rng: Random, seed: Path, made: Path, other: bytes) -> None:
    """Copy a folder and damage one of its files."""
    shutil.copytree(seed, made)
    path = rng.choice(sorted(made.iterdir()))
    path.write_bytes(damaged(rng, path.read_bytes(), other))


# --- .pt -------------------------------------------------------------------------------------


def _pt(rng: Random, seed: Path, made: Path) -> None:
    rng.choices((_other_values, _other_tensor, _other_pickle, _other_records), (5, 4, 3, 1))[0](
        rng, seed, made
    )


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


EVIL_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**2000, 10**9, 1.5, 1e308, float("nan"), float("inf"), "",
    "x" * 100_000, "OCPMambaLVM", "gru", [], {}, [None], {3: 4}, {"": None}, (), _nested(20),
    _nested(200), torch.zeros(3), ["a"] * 1000, "\ud800",
)  # fmt: skip


def _other_values(rng: Random, seed: Path, made: Path) -> None:
    content = torch.load(seed, weights_only=True)
    part = rng.choice(sorted(content))
    if part == "state_dict" or rng.random() < 0.2:
        content = changed_tree(rng, content, EVIL_VALUES)
    else:
        content[part] = changed_tree(rng, content[part], EVIL_VALUES)
    write_tensors(made, content)


def _other_tensor(rng: Random, seed: Path, made: Path) -> None:
    content = torch.load(seed, weights_only=True)
    weights = dict(content["state_dict"])
    name = rng.choice(list(weights))
    t = weights[name]
    makers: tuple[Callable[[], Any], ...] = (
        lambda: t.double(), lambda: t.half(), lambda: t.bfloat16(), lambda: t.int(),
        lambda: t.bool(), lambda: t[None], lambda: t.reshape(-1)[:-1].clone(), lambda: t / 0,
        lambda: t + float("inf"), lambda: t.to("meta"), lambda: t.to_sparse(), lambda: t.T,
        lambda: torch.zeros(1).expand(10**6, 10**6), lambda: t.to(torch.complex64), lambda: None,
        lambda: t.tolist(), lambda: torch.nn.Parameter(t), lambda: torch.zeros(0),
        lambda: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8), lambda: bytearray(9),
        lambda: torch.zeros((1,) * 40), lambda: torch.float32, lambda: {"a": t},
    )  # fmt: skip
    try:
        weights[name] = rng.choice(makers)()
    except Exception:  # this tensor cannot be changed in this way
        del weights[name]
    if rng.random() < 0.1:
        weights[rng.choice(("x", "layers.0.x", "layers.9999999.x", ""))] = torch.zeros(2)
    write_tensors(made, content | {"state_dict": weights})


def _other_pickle(rng: Random, seed: Path, made: Path) -> None:
    """Damage the pickle inside, or put another one there; the digest is right."""
    records = _records(seed)
    name = next(n for n in records if n.endswith("data.pkl"))
    protocol = rng.choice((2, 4))
    records[name] = rng.choice((
        lambda: damaged(rng, records[name], b"cos\nsystem\n(S'touch unpickled'\ntR."),
        lambda: damaged(rng, records[name], records[name]),
        lambda: pickle.dumps({"format_version": 3, "state_dict": Payload()}, protocol=protocol),
        lambda: b"\x80\x02cbuiltins\nbytearray\nI9999999999\n\x85R.",
        lambda: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR.",
        lambda: b"\x80\x02]q\x00h\x00a.",
        lambda: records[name].replace(b"K\x10", rng.choice((b"K\xff", b"K\x00", b"K\x20")), 3),
    ))()  # fmt: skip
    _write_records(made, records)


def _other_records(rng: Random, seed: Path, made: Path) -> None:
    records = _records(seed)
    name = rng.choice(list(records))
    records[name] = rng.choice(
        (b"", records[name] * 2, damaged(rng, records[name] or b"x", b"big"))
    )
    if rng.random() < 0.3:
        del records[name]
    _write_records(made, records, rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))


def _records(seed: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(seed) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write_records(made: Path, records: dict[str, bytes], how: int = zipfile.ZIP_STORED) -> None:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", how) as archive:
        for name, record in records.items():
            archive.writestr(name, record)
    whole = content.getvalue()
    comment = MARK + hashlib.sha256(whole).hexdigest().encode()
    made.write_bytes(
        whole[:-LENGTH_FIELD] + COMMENT_BYTES.to_bytes(LENGTH_FIELD, "little") + comment
    )


# --- text ------------------------------------------------------------------------------------


def _json_lines(rng: Random, seed: Path, made: Path) -> None:
    lines = [json.loads(line) for line in seed.read_text(encoding="utf-8").splitlines()]
    at = rng.randrange(len(lines))
    lines[at] = changed_tree(rng, lines[at], EVIL_JSON)
    if rng.random() < 0.2:
        lines.insert(rng.randrange(len(lines)), Raw(rng.choice(("", "\r", "\u2028", "{", "[]"))))
    end = rng.choice(("\n", "\n", "\r\n", "\n\n"))
    text = end.join(map(to_json, lines)) + rng.choice((end, ""))
    made.write_bytes(rng.choice((b"", b"", b"\xef\xbb\xbf", b"\xff\xfe")) + text.encode())


def _toml(rng: Random, seed: Path, made: Path) -> None:
    text = changed_lines(rng, seed.read_text(), "=", EVIL_TOML)
    made.write_text(text, encoding="utf-8")


def _yaml(rng: Random, seed: Path, made: Path) -> None:
    text = seed.read_text()
    for _ in range(rng.choice((1, 2))):
        if rng.random() < 0.6:  # a value inside of the braces
            words = text.split(" ")
            at = rng.randrange(len(words))
            words[at] = rng.choice(EVIL_YAML) + words[at].lstrip(ascii_lowercase + digits)
            text = " ".join(words)
        else:
            text = changed_lines(rng, text, ":", EVIL_YAML)
    made.write_text(text, encoding="utf-8")


FORGERS: dict[str, Callable[[Random, Path, Path], None]] = {
    "npz": _npz, "legacy": _npz, "shards": _shards, "pt": _pt,
    "chains": _json_lines, "queue": _json_lines, "toml": _toml, "yaml": _yaml,
}  # fmt: skip
