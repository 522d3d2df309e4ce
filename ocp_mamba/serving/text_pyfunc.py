"""The model for people as an MLflow pyfunc: concepts as texts in, the next ones and scores out.

It holds the same files as the version of the model of vectors that it belongs to: the ``.pt`` and
the bundle, whose bank gives texts their vectors. A signature of its own is needed. MLflow 3.17
takes tensors (the vectors of existing clients) or columns (texts) in one signature, never both; a
model without an input schema takes both, but then MLflow checks nothing and its UI shows nothing.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Object, Property

from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import RequestError
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.serving.bundle import EVALUATION, read_bundle, read_concepts
from ocp_mamba.serving.pyfunc import SERVED_PACKAGES, pip_requirements, save_from_code
from ocp_mamba.serving.text import Prediction, TextPredictor

if TYPE_CHECKING:
    from ocp_mamba.embeddings.encoders import Encoder

TEXT_CODE = Path(__file__).with_name("text_pyfunc_entry.py")
TEXT_PACKAGES = ("faiss-cpu", *SERVED_PACKAGES, "rapidfuzz", "tabulate")
EXAMPLE_CONCEPTS = 3

ENCODER_VARIABLE = "OCP_MAMBA_ENCODER"
"""Environment variable: name or folder of the encoder of texts that are not in the bank."""

CONCEPTS, CODES = "concepts", "codes"
"""Columns of a request; the second one only of a model that takes TMD codes."""


def text_signature(config: ModelConfig) -> ModelSignature:
    """Return the request schema of a model for people.

    A row is a chain: the column ``concepts`` holds its texts. A model with TMD has an optional
    column ``codes``: domain, task and modifier. The answer has a row for each chain, with its
    concepts as they were understood, and the next concepts and their scores for each step.
    """
    inputs: list[ColSpec | TensorSpec] = [ColSpec(Array(DataType.string), CONCEPTS)]
    if config.d_tmd:
        inputs.append(ColSpec(Array(DataType.long), CODES, required=False))
    following = Object([Property("concept", DataType.string), Property("score", DataType.double)])
    step = Object(
        [
            Property("next", Array(following)),
            Property("vector", Array(DataType.double), required=False),
        ]
    )
    return ModelSignature(
        inputs=Schema(inputs),
        outputs=Schema([ColSpec(Array(DataType.string), CONCEPTS), ColSpec(Array(step), "steps")]),
        params=ParamSchema(
            [
                ParamSpec("top_k", "long", 5),
                ParamSpec("steps", "long", 1),
                ParamSpec("return_vectors", "boolean", False),
            ]
        ),
    )


def save_text_pyfunc(
    folder: Path,
    checkpoint: Path,
    bundle: Sequence[Path],
    *,
    model_id: str | None = None,
    run_id: str | None = None,
) -> None:
    """Write a loadable MLflow model that is asked in words, into a folder that does not exist yet.

    Args:
        folder: where to write.
        checkpoint: the ``.pt`` that it serves.
        bundle: files of `bundle.write_bundle`.
        model_id: the LoggedModel it belongs to, if any.
        run_id: the run that trained it, if any.

    Raises:
        CheckpointError: the ``.pt`` cannot be read.
        EvidenceError: the bank cannot be read.
    """
    texts, _ = read_concepts(next(path for path in bundle if path.name == EVALUATION))
    example = [str(text) for text in texts[:EXAMPLE_CONCEPTS]]
    save_from_code(
        folder,
        checkpoint,
        bundle,
        python_model=str(TEXT_CODE),
        signature=text_signature(load_checkpoint(checkpoint).model_config),
        input_example=(
            pd.DataFrame({CONCEPTS: [example]}),
            {"top_k": 5, "steps": 1, "return_vectors": False},
        ),
        pip_requirements=pip_requirements(TEXT_PACKAGES),
        mlflow_model=Model(model_id=model_id, model_uuid=model_id, run_id=run_id),
    )


def predictor_of_folder(artifacts: Path, encoder: Encoder | None = None) -> TextPredictor:
    """Return the predictor of a version, once every file has the digest that its manifest names.

    Args:
        artifacts: the version's ``artifacts`` folder, or a copy of it.
        encoder: as `TextPredictor`.

    Raises:
        EvidenceError: a file is missing, damaged, or not the one that the manifest names.
        EncoderError: the encoder is not the one of the bank's vectors.
    """
    bundle = read_bundle(artifacts)
    texts, bank = read_concepts(artifacts / EVALUATION)
    model = bundle.checkpoint.build_model()
    return TextPredictor(model, bank, texts, encoder=encoder, identity=bundle.checkpoint.encoder)


class ServedText(PythonModel):
    """Answers chains of texts with the next concepts, as `text.Prediction`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the files, and the encoder where ``OCP_MAMBA_ENCODER`` names one."""
        encoder = None
        if name := os.environ.get(ENCODER_VARIABLE):
            from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder

            encoder = SentenceTransformerEncoder(name)
        self.predictor = predictor_of_folder(Path(context.artifacts["manifest"]).parent, encoder)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> list[Prediction]:
        """Return the answers, one a row of ``model_input``.

        Raises:
            MlflowException: a text is unknown or ambiguous, a chain is empty, or a count is out of
                range; a scoring server answers with status 400.
        """
        given = params or {}
        codes = model_input[CODES].tolist() if CODES in model_input else None
        try:
            return self.predictor.predict(
                model_input[CONCEPTS].tolist(),
                top_k=given.get("top_k", 5),
                steps=given.get("steps", 1),
                return_vectors=given.get("return_vectors", False),
                codes=codes,
            )
        except RequestError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error
