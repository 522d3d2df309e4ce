"""The model as an MLflow pyfunc: its files, its request schema, and the checks on a request.

The model is saved from code (no pickle): `pyfunc_model.py`, the ``.pt`` and a copy of this package,
so that a scoring server needs torch, numpy and mlflow, not an installed ``ocp_mamba``.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from torch import Tensor

from ocp_mamba.config import ModelConfig
from ocp_mamba.model import load_checkpoint, load_model

CHECKPOINT = "model.pt"
"""Name of the ``.pt`` inside the model's ``artifacts`` folder."""

PACKAGE = Path(__file__).parent
MODEL_CODE = PACKAGE / "pyfunc_model.py"
SERVED_PACKAGES = ("mlflow", "numpy", "torch")
EXAMPLE_LENGTH = 3

FLOAT = np.dtype(np.float32)


def pip_requirements() -> list[str]:
    """Pins of what runs here; local versions such as ``+cpu`` are cut, no index has them."""
    return [f"{name}=={version(name).split('+')[0]}" for name in SERVED_PACKAGES]


def signature(config: ModelConfig) -> ModelSignature:
    """Return the request schema of a model.

    Without TMD the input is one unnamed tensor ``(-1, -1, 768)``; with TMD it is two named ones,
    ``seq_vectors`` and ``tmd`` ``(-1, 16)``. ``lengths`` is an optional parameter: the valid
    positions of each right-padded row; empty means that no row is padded. A model that knows
    relations has two more: ``relation`` and ``confidence``, see `read_relations`.
    """
    width = config.d_vector
    inputs: list[ColSpec | TensorSpec]
    if config.d_tmd:
        inputs = [
            TensorSpec(FLOAT, (-1, -1, width), "seq_vectors"),
            TensorSpec(FLOAT, (-1, config.d_tmd), "tmd"),
        ]
    else:
        inputs = [TensorSpec(FLOAT, (-1, -1, width))]
    params = [ParamSpec("lengths", "long", [], shape=(-1,))]
    if config.relations:
        params += [
            ParamSpec("relation", "long", [], shape=(-1,)),
            ParamSpec("confidence", "double", [], shape=(-1,)),
        ]
    return ModelSignature(
        inputs=Schema(inputs),
        outputs=Schema([TensorSpec(FLOAT, (-1, width))]),
        params=ParamSchema(params),
    )


def input_example(config: ModelConfig) -> np.ndarray | dict[str, np.ndarray]:
    """Return a request of one sequence of unit vectors, in the shape that `signature` wants."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1, EXAMPLE_LENGTH, config.d_vector))
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    if not config.d_tmd:
        return vectors
    tmd = rng.standard_normal((1, config.d_tmd)).astype(np.float32)
    return {"seq_vectors": vectors, "tmd": tmd / np.linalg.norm(tmd)}


def save_pyfunc(
    folder: Path, checkpoint: Path, *, model_id: str | None = None, run_id: str | None = None
) -> None:
    """Write a loadable MLflow model into a folder that does not exist yet.

    Args:
        folder: where to write.
        checkpoint: the ``.pt`` that it serves.
        model_id: the LoggedModel it belongs to, if any.
        run_id: the run that trained it, if any.

    Raises:
        CheckpointError: the ``.pt`` cannot be read.
    """
    config = load_checkpoint(checkpoint).model_config
    with tempfile.TemporaryDirectory() as scratch:
        named = Path(scratch) / CHECKPOINT
        shutil.copyfile(checkpoint, named)
        mlflow.pyfunc.save_model(
            path=str(folder),
            python_model=str(MODEL_CODE),
            artifacts={"checkpoint": str(named)},
            code_paths=[str(PACKAGE)],
            signature=signature(config),
            input_example=input_example(config),
            pip_requirements=pip_requirements(),
            mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run_id),
        )


class ServedLVM(PythonModel):
    """Answers requests with the next vectors, unit rows ``(B, 768)`` float32."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the ``.pt``."""
        self.model = load_model(context.artifacts["checkpoint"])

    def predict(
        self,
        context: PythonModelContext,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> np.ndarray:
        """Return ``(B, 768)`` predictions.

        Raises:
            MlflowException: (a 400 when served) a shape does not fit, a number is not finite, a
                valid position is all zeros, or a length, a relation or a confidence is out of
                range.
        """
        given, config = params or {}, self.model.config
        vectors, tmd, lengths = read_request(model_input, given.get("lengths"), config)
        B, L = vectors.shape[:2]
        relations = read_relations(given.get("relation"), given.get("confidence"), B, L, config)
        with torch.inference_mode():
            return self.model(vectors, tmd, lengths, relations).numpy()


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
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    valid = np.arange(L) < counts[:, None]
    if (zero := valid & (norms[..., 0] == 0)).any():
        b, t = np.argwhere(zero)[0]
        _refuse(f"seq_vectors[{b}][{t}] is all zeros; a concept vector has a direction")
    unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
    return torch.from_numpy(unit.astype(np.float32)), tmd, torch.from_numpy(counts)


def _tensor(named: dict[str, Any], name: str, wanted: tuple[int | str, ...]) -> np.ndarray:
    """The named input as finite float64 of the wanted shape; letters stand for 1 or more."""
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
        relation: B times L numbers, one sequence after the other: by which relation each position
            follows the one before it, 1 for the model's first relation, 0 for unknown; None or
            empty where all are unknown.
        confidence: as many numbers, 0..1; None or empty where every known relation is sure.
        B: sequences.
        L: positions of each.
        config: the model's relations.

    Returns:
        float32 ``(B, L, 2)``, or None where no relation is given.

    Raises:
        MlflowException: as `ServedLVM.predict`.
    """
    numbers = np.asarray([] if relation is None else relation, dtype=np.int64)
    sure = np.asarray([] if confidence is None else confidence, dtype=np.float64)
    if numbers.size == 0:
        if sure.size:
            _refuse("confidence is given without relation; it says how sure a relation is")
        return None
    known = len(config.relations)
    if numbers.shape != (B * L,) or numbers.min() < 0 or numbers.max() > known:
        names = ", ".join(f"{n} {name}" for n, name in enumerate(config.relations[:20], start=1))
        _refuse(
            f"relation must hold {B * L} numbers ({B} sequences of {L} positions) from 0 to "
            f"{known} (0 unknown, {names}); got shape {_shape(numbers.shape)} with values "
            f"{numbers.min()} to {numbers.max()}"
        )
    if sure.size == 0:
        sure = np.ones(B * L)
    if sure.shape != (B * L,) or not ((sure >= 0) & (sure <= 1)).all():
        _refuse(f"confidence must hold {B * L} numbers from 0 to 1; got shape {_shape(sure.shape)}")
    steps = np.stack([numbers, sure * (numbers > 0)], axis=-1).astype(np.float32)
    return torch.from_numpy(steps).reshape(B, L, 2)


def _shape(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(n) for n in shape) + ")"


def _refuse(message: str) -> None:
    raise MlflowException.invalid_parameter_value(message)
