"""The model as an MLflow pyfunc: its files, its request schema, and the checks on a request.

The model is saved from code, without a pickle: `pyfunc_entry.py`, the ``.pt`` and a copy of this
package, so that a scoring server needs torch, numpy and mlflow, but no installed ``ocp_mamba``.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import torch
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.checkpoint import load_checkpoint, load_model
from ocp_mamba.serving.bundle import CHECKPOINT, PACKAGE
from ocp_mamba.serving.request import read_relations, read_request

MODEL_CODE = Path(__file__).with_name("pyfunc_entry.py")
SERVED_PACKAGES = ("mlflow", "numpy", "torch")
EXAMPLE_LENGTH = 3

FLOAT = np.dtype(np.float32)


def pip_requirements(packages: Sequence[str] = SERVED_PACKAGES) -> list[str]:
    """Return pins of the installed versions, without local parts such as ``+cpu``."""
    return [f"{name}=={version(name).split('+')[0]}" for name in packages]


def signature(config: ModelConfig) -> ModelSignature:
    """Return the request schema of a model.

    Without TMD the input is one unnamed tensor ``(-1, -1, 768)``; with TMD it is two named ones,
    ``seq_vectors`` and ``tmd`` ``(-1, 16)``. ``lengths`` is an optional parameter: the valid
    positions of each right-padded row; empty means that no row is padded. A model that takes
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
    """Return a request of one sequence of unit vectors, in the shapes of `signature`."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1, EXAMPLE_LENGTH, config.d_vector))
    vectors = (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)
    if not config.d_tmd:
        return vectors
    tmd = rng.standard_normal((1, config.d_tmd)).astype(np.float32)
    return {"seq_vectors": vectors, "tmd": tmd / np.linalg.norm(tmd)}


def save_pyfunc(
    folder: Path,
    checkpoint: Path,
    bundle: Sequence[Path] = (),
    *,
    model_id: str | None = None,
    run_id: str | None = None,
) -> None:
    """Write a loadable MLflow model into a folder that does not exist yet.

    Args:
        folder: where to write.
        checkpoint: the ``.pt`` that it serves.
        bundle: files of `bundle.write_bundle`, each of which becomes an artifact of its stem's
            name: ``context.artifacts["evaluation"]`` is the path of ``evaluation.npz``.
        model_id: the LoggedModel it belongs to, if any.
        run_id: the run that trained it, if any.

    Raises:
        CheckpointError: the ``.pt`` cannot be read.
    """
    config = load_checkpoint(checkpoint).model_config
    save_from_code(
        folder,
        checkpoint,
        bundle,
        python_model=str(MODEL_CODE),
        signature=signature(config),
        input_example=input_example(config),
        pip_requirements=pip_requirements(),
        mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run_id),
    )


def save_from_code(folder: Path, checkpoint: Path, bundle: Sequence[Path], **given: Any) -> None:
    """Write a loadable MLflow model: a ``.pt``, its bundle, a copy of this package, an entry file.

    Args:
        folder: where to write; it does not exist yet.
        checkpoint: the ``.pt``, which becomes the artifact ``checkpoint``.
        bundle: files that become artifacts of their stems' names.
        given: further arguments of `mlflow.pyfunc.save_model`, the entry file and the signature.
    """
    with tempfile.TemporaryDirectory() as scratch:
        named = Path(scratch) / CHECKPOINT
        shutil.copyfile(checkpoint, named)
        mlflow.pyfunc.save_model(
            path=str(folder),
            artifacts={"checkpoint": str(named), **{p.stem: str(p) for p in bundle}},
            code_paths=[str(PACKAGE)],
            **given,
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
            MlflowException: a shape does not fit, a number is not finite, a valid position is all
                zeros, or a length, a relation or a confidence is out of range; a scoring server
                answers with status 400.
        """
        given, config = params or {}, self.model.config
        vectors, tmd, lengths = read_request(model_input, given.get("lengths"), config)
        B, L = vectors.shape[:2]
        relations = read_relations(given.get("relation"), given.get("confidence"), B, L, config)
        known = {} if relations is None else {"relations": relations}
        with torch.inference_mode():
            return self.model(vectors, tmd, lengths, **known).numpy()
