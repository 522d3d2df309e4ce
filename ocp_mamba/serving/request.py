"""The checks on a request to a served model, and its conversion to the model's arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mlflow.exceptions import MlflowException
from torch import Tensor

from ocp_mamba.config import ModelConfig


def read_request(
    model_input: Any, lengths: Any, config: ModelConfig
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Check a request and turn it into the model's arguments.

    Args:
        model_input: ``(B, L, 768)`` or, with TMD, a dict of ``seq_vectors`` and ``tmd``.
        lengths: ``(B,)`` valid positions, 1..L; None or empty means L for all.
        config: the model's shape.

    Returns:
        Vectors ``(B, L, 768)`` scaled to unit rows, tmd ``(B, 16)`` or None, lengths ``(B,)``.

    Raises:
        MlflowException: as `ServedLVM.predict`.
    """
    named = model_input if isinstance(model_input, dict) else {"seq_vectors": model_input}
    vectors = _tensor(named, "seq_vectors", ("B", "L", config.d_vector))
    B, L = vectors.shape[:2]
    counts = _lengths(lengths, B, L)
    tmd = None
    if config.d_tmd:
        tmd = torch.from_numpy(_tensor(named, "tmd", (B, config.d_tmd)).astype(np.float32))
    # scaled first: the square of a number far from one is infinite, or zero
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    vectors = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    valid = np.arange(L) < counts[:, None]
    if (zero := valid & (norms[..., 0] == 0)).any():
        b, t = np.argwhere(zero)[0]
        _refuse(f"seq_vectors[{b}][{t}] is all zeros; a concept vector has a direction")
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return torch.from_numpy(unit.astype(np.float32)), tmd, torch.from_numpy(counts)


def _tensor(named: dict[str, Any], name: str, wanted: tuple[int | str, ...]) -> np.ndarray:
    """The named input as finite float64 of the wanted shape; a letter is any size of 1 or more."""
    if name not in named:
        _refuse(f"{name} is missing; this model takes it with shape {_shape(wanted)}")
    array = np.asarray(named[name], dtype=np.float64)
    fits = array.ndim == len(wanted) and all(
        have == want if isinstance(want, int) else have >= 1
        for have, want in zip(array.shape, wanted, strict=True)
    )
    if not fits:
        _refuse(f"{name} has shape {_shape(array.shape)}, wanted {_shape(wanted)}, none of them 0")
    if not np.isfinite(array).all():
        place = "".join(f"[{i}]" for i in np.argwhere(~np.isfinite(array))[0])
        _refuse(f"{name}{place} is not a finite number (NaN, Infinity, null or out of range)")
    return array


def _lengths(lengths: Any, B: int, L: int) -> np.ndarray:
    counts = np.asarray([] if lengths is None else lengths, dtype=np.int64)
    if counts.size == 0:
        return np.full(B, L)
    if counts.shape != (B,) or counts.min() < 1 or counts.max() > L:
        _refuse(
            f"lengths must hold {B} numbers from 1 to {L}, one a sequence; got shape "
            f"{_shape(counts.shape)} with values {counts.min()} to {counts.max()}"
        )
    return counts


def read_relations(
    relation: Any, confidence: Any, B: int, L: int, config: ModelConfig
) -> Tensor | None:
    """Check the relations of a request and turn them into the model's argument.

    Args:
        relation: B times L numbers, one sequence after the other: the relation by which each
            position follows the one before it, 1 for the model's first relation, 0 for unknown;
            None or empty where all are unknown.
        confidence: as many numbers, 0..1; None or empty for 1 at every known relation.
        B: sequences.
        L: positions of each.
        config: the model's relations.

    Returns:
        float32 ``(B, L, 2)``, or None where no relation is given.

    Raises:
        MlflowException: as `ServedLVM.predict`.
    """
    numbers = np.asarray([] if relation is None else relation, dtype=np.int64)
    confidences = np.asarray([] if confidence is None else confidence, dtype=np.float64)
    if numbers.size == 0:
        if confidences.size:
            _refuse("confidence is given without relation; it is the confidence in a relation")
        return None
    known = len(config.relations)
    if numbers.shape != (B * L,) or numbers.min() < 0 or numbers.max() > known:
        names = ", ".join(f"{n} {name}" for n, name in enumerate(config.relations[:20], start=1))
        _refuse(
            f"relation must hold {B * L} numbers ({B} sequences of {L} positions) from 0 to "
            f"{known} (0 unknown, {names}); got shape {_shape(numbers.shape)} with values "
            f"{numbers.min()} to {numbers.max()}"
        )
    if confidences.size == 0:
        confidences = np.ones(B * L)
    if confidences.shape != (B * L,) or not ((confidences >= 0) & (confidences <= 1)).all():
        shape = _shape(confidences.shape)
        _refuse(f"confidence must hold {B * L} numbers from 0 to 1; got shape {shape}")
    steps = np.stack([numbers, confidences * (numbers > 0)], axis=-1).astype(np.float32)
    return torch.from_numpy(steps).reshape(B, L, 2)


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ")"


def _refuse(message: str) -> None:
    raise MlflowException.invalid_parameter_value(message)
