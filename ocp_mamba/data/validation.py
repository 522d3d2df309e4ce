"""What makes a dataset valid: every array's dtype, shape and range, in messages that help."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.data.arrays import DatasetArrays
from ocp_mamba.errors import DatasetError, shown

UNIT_TOLERANCE = 2e-3
"""How far a bank row's norm may be from 1; float16 rounding alone stays below 5e-4."""


def check_dataset(data: DatasetArrays, schema_version: int, n_splits: int) -> None:
    """Check all arrays of a dataset against each other.

    Raises:
        DatasetError: names the key, what was found and what is wanted.
    """
    check_meta(data.meta, schema_version, data.chain_relation is not None)
    check_bank(data.bank, data.texts, data.bank_dtype)
    check_chains(data, n_splits)


def check_chains(data: DatasetArrays, n_splits: int) -> None:
    """Check all arrays of a dataset but the bank and its texts.

    Raises:
        DatasetError: as `check_dataset`.
    """
    _check_chains(data.chain_values, data.chain_offsets, len(data.bank))
    n = len(data.chain_offsets) - 1
    _check_array("split", data.split, (np.uint8,), (n,))
    _check_range("split", data.split, 0, n_splits - 1)
    _check_array("chain_source", data.chain_source, (np.uint8, np.uint16), (n,))
    _check_range("chain_source", data.chain_source, 0, len(data.meta["sources"]) - 1)
    _check_array("chain_first", data.chain_first, (np.uint8,), (n,))
    lengths = np.diff(data.chain_offsets)
    wrong = np.flatnonzero((data.chain_first < 1) | (data.chain_first >= lengths))
    if len(wrong):
        i = wrong[0]
        raise DatasetError(
            f"key 'chain_first': {data.chain_first[i]} found for chain {i} of {lengths[i]} "
            f"concepts, 1 to {lengths[i] - 1} wanted ({len(wrong)} chains are wrong)"
        )
    if data.chain_tmd is not None:
        _check_array("chain_tmd", data.chain_tmd, (np.float32,), (n, D_TMD))
        _check_finite("chain_tmd", data.chain_tmd)
    _check_relations(data)


def _check_relations(data: DatasetArrays) -> None:
    """Check relations and confidences of the steps, where there are any."""
    relation, confidence = data.chain_relation, data.chain_confidence
    if relation is None:
        if confidence is not None:
            raise DatasetError("key 'chain_relation': absent, but there is chain_confidence")
        return
    _check_array("chain_relation", relation, (np.uint16,), data.chain_values.shape)
    _check_range("chain_relation", relation, 0, len(data.meta["relations"]))
    _check_step("chain_relation", relation != 0, data.chain_offsets[:-1], "0 at a chain's start")
    if confidence is None:
        return
    _check_array("chain_confidence", confidence, (np.float32,), data.chain_values.shape)
    _check_step("chain_confidence", ~((confidence >= 0) & (confidence <= 1)), None, "0 to 1")
    unknown = np.flatnonzero(relation == 0)
    _check_step("chain_confidence", confidence != 0, unknown, "0 where the relation is unknown")


def _check_step(key: str, wrong: np.ndarray, at: np.ndarray | None, wanted: str) -> None:
    """Refuse values that are wrong at the places looked at; None looks at all."""
    places = np.flatnonzero(wrong) if at is None else at[wrong[at]]
    if len(places):
        raise DatasetError(
            f"key '{key}': {wanted} wanted, something else found at index {places[0]} "
            f"({len(places)} values are wrong)"
        )


def _different_names(names: Any) -> bool:
    named = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return named and len(names) > 0 and len(set(names)) == len(names)


def _check_array(key: str, array: Any, dtypes: tuple[type, ...], shape: tuple[int, ...]) -> None:
    """Check dtype and shape; -1 in ``shape`` fits any length."""
    wanted = " or ".join(np.dtype(t).name for t in dtypes) + f" {shape}".replace("-1", "n")
    if not isinstance(array, np.ndarray):
        raise DatasetError(f"key '{key}': {type(array).__name__} found, {wanted} array wanted")
    fits = len(array.shape) == len(shape) and all(
        w in (-1, found) for w, found in zip(shape, array.shape, strict=True)
    )
    if array.dtype not in [np.dtype(t) for t in dtypes] or not fits:
        raise DatasetError(f"key '{key}': {array.dtype} {array.shape} found, {wanted} wanted")


def _check_range(key: str, array: np.ndarray, low: int, high: int) -> None:
    wrong = np.flatnonzero((array < low) | (array > high))
    if len(wrong):
        raise DatasetError(
            f"key '{key}': {array[wrong[0]]} found at index {wrong[0]}, {low} to {high} wanted "
            f"({len(wrong)} values are wrong)"
        )


def _check_finite(key: str, array: np.ndarray) -> None:
    # a sum is finite where all are, unless it overflows: only then every value is looked at
    with np.errstate(over="ignore", invalid="ignore"):
        rows = np.flatnonzero(~np.isfinite(np.einsum("nd->n", array)))
    rows = rows[~np.isfinite(array[rows]).all(axis=1)]
    if len(rows):
        raise DatasetError(f"key '{key}': NaN or infinity in {len(rows)} rows, first row {rows[0]}")


def check_meta(meta: Any, schema_version: int, has_relations: bool) -> None:
    """Check the object that a dataset keeps beside its arrays.

    Args:
        meta: the object.
        schema_version: the version that it must have.
        has_relations: whether the dataset has a ``chain_relation``.

    Raises:
        DatasetError: names what was found and what is wanted.
    """
    if not isinstance(meta, dict):
        raise DatasetError(f"key 'meta': {type(meta).__name__} found, dict wanted")
    found = meta.get("schema_version")
    if found != schema_version or isinstance(found, bool):
        raise DatasetError(
            f"key 'meta': schema_version {shown(found)} found, {schema_version} wanted; "
            "the file was written by another version of ocp-mamba: build or import it again"
        )
    encoder = meta.get("encoder")
    if not isinstance(encoder, dict) or not all(
        isinstance(encoder.get(key), str) for key in ("name", "weight_hash")
    ):
        raise DatasetError(
            f"key 'meta': encoder {shown(encoder)} found, an object with the texts name and "
            "weight_hash wanted"
        )
    sources = meta.get("sources")
    if not _different_names(sources):
        raise DatasetError(
            f"key 'meta': sources {shown(sources)} found, a list of one or more different names "
            "wanted"
        )
    relations = meta.get("relations")
    if has_relations and not _different_names(relations):
        raise DatasetError(
            f"key 'meta': relations {shown(relations)} found, a list of one or more different "
            "names wanted, as there is a chain_relation"
        )
    if not has_relations and relations is not None:
        raise DatasetError(
            "key 'chain_relation': absent, but there is relations in 'meta': give both"
        )
    try:
        json.dumps(meta)
    except (TypeError, ValueError, RecursionError) as error:
        raise DatasetError(f"key 'meta': cannot be written as JSON: {error}") from error


def check_characters(key: str, texts: np.ndarray) -> None:
    """Refuse numbers in a unicode array that are no characters.

    Raises:
        DatasetError: names the key.
    """
    if not texts.dtype.itemsize:
        return
    codes = np.ascontiguousarray(texts).reshape(-1).view(texts.dtype.str[0] + "u4")
    wrong = np.flatnonzero((codes > sys.maxunicode) | ((codes >= 0xD800) & (codes <= 0xDFFF)))
    if len(wrong):
        text = wrong[0] // (texts.dtype.itemsize // 4)
        raise DatasetError(
            f"key '{key}': 0x{codes[wrong[0]]:x} found in text {text}, which is no character"
        )


def check_bank(bank: np.ndarray, texts: np.ndarray, bank_dtype: str) -> None:
    """Check rows of the bank ``(n, 768)`` and their texts.

    Raises:
        DatasetError: as `check_dataset`.
    """
    if bank_dtype not in ("float16", "float32"):
        raise DatasetError(f"bank_dtype {bank_dtype!r} found, float16 or float32 wanted")
    _check_array("bank", bank, (np.float32,), (-1, D_VECTOR))
    if len(bank) == 0:
        raise DatasetError("key 'bank': no rows found, at least one concept wanted")
    _check_finite("bank", bank)
    norms = np.sqrt(np.einsum("nd,nd->n", bank, bank))
    wrong = np.flatnonzero(np.abs(norms - 1) > UNIT_TOLERANCE)
    if len(wrong):
        raise DatasetError(
            f"key 'bank': row {wrong[0]} has norm {norms[wrong[0]]:.4g}, 1 wanted within "
            f"{UNIT_TOLERANCE} ({len(wrong)} rows are wrong); divide each row by its norm"
        )
    if not isinstance(texts, np.ndarray) or texts.dtype.kind != "U" or texts.shape != (len(bank),):
        found = (
            f"{texts.dtype} {texts.shape}"
            if isinstance(texts, np.ndarray)
            else type(texts).__name__
        )
        raise DatasetError(f"key 'texts': {found} found, unicode ({len(bank)},) wanted")
    check_characters("texts", texts)


def _check_chains(values: np.ndarray, offsets: np.ndarray, n_concepts: int) -> None:
    _check_array("chain_values", values, (np.int32,), (-1,))
    _check_array("chain_offsets", offsets, (np.int64,), (-1,))
    if len(offsets) < 2:
        raise DatasetError("key 'chain_offsets': no chains found, at least one wanted")
    if offsets[0] != 0 or offsets[-1] != len(values):
        raise DatasetError(
            f"key 'chain_offsets': runs from {offsets[0]} to {offsets[-1]}, "
            f"from 0 to {len(values)} (the length of chain_values) wanted"
        )
    _check_range("chain_offsets", offsets, 0, len(values))
    lengths = np.diff(offsets)
    short = np.flatnonzero(lengths < 2)
    if len(short):
        raise DatasetError(
            f"key 'chain_offsets': chain {short[0]} has length {lengths[short[0]]}, 2 or more "
            f"wanted ({len(short)} chains are wrong)"
        )
    _check_range("chain_values", values, 0, n_concepts - 1)
