"""What requests and answers below ``/v1`` hold, for the checks and for the OpenAPI page."""

from __future__ import annotations

from io import BytesIO
from typing import Annotated, Any

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, WithJsonSchema

from ocp_mamba.config import D_TMD, D_VECTOR
from ocp_mamba.errors import RequestError
from ocp_mamba.service.version import Predicted

NPY, JSON = "application/x-npy", "application/json"
MAX_JSON_VECTORS = 1_024
"""Vectors that a JSON answer holds at most; each is 15 kB of text."""
MAX_NAMED = 100_000
"""Concepts that an answer names at most."""

NUMBER = {"type": "number"}
VECTOR = {"type": "array", "items": NUMBER, "minItems": D_VECTOR, "maxItems": D_VECTOR}
TMD = {"type": "array", "items": NUMBER, "minItems": D_TMD, "maxItems": D_TMD}
CODES = {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}
TEXT = {"type": "string", "minLength": 1, "maxLength": 1000}


def _list_of(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": 1}


# What the schema describes and `reading` checks: pydantic would look at each number by itself.
Text = Annotated[Any, WithJsonSchema(TEXT)]
Texts = Annotated[Any, WithJsonSchema(_list_of(TEXT))]
ChainsOfTexts = Annotated[Any, WithJsonSchema(_list_of(_list_of(TEXT)))]
Vector = Annotated[Any, WithJsonSchema(VECTOR)]
Vectors = Annotated[Any, WithJsonSchema(_list_of(VECTOR))]
ChainsOfVectors = Annotated[Any, WithJsonSchema(_list_of(_list_of(VECTOR)))]
Tmd = Annotated[Any, WithJsonSchema(TMD)]
ChainsOfTmd = Annotated[Any, WithJsonSchema(_list_of(TMD))]
Codes = Annotated[list[StrictInt], WithJsonSchema(CODES)]


class Body(BaseModel):
    """A JSON object; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid")


class Counts(Body):
    """What is asked about each step."""

    top_k: StrictInt = Field(5, description="Concepts to name for each step; 0 for none.")
    return_vectors: StrictBool = Field(False, description="Also return the predicted vectors.")


class PredictQuery(BaseModel):
    """What is asked about vectors that are sent as application/x-npy."""

    model_config = ConfigDict(extra="forbid")
    top_k: int = Field(5, ge=0, description="Concepts to name for each step; 0 for none.")
    steps: int = Field(1, ge=1, description="Steps ahead.")
    return_vectors: bool = Field(False, description="Also return the predicted vectors.")
    lengths: str = Field(
        "", max_length=20_000, pattern=r"^(\d{1,6}(,\d{1,6})*)?$",
        description="Valid vectors of each right-padded chain, such as 5,2; all without it.",
    )  # fmt: skip


class PredictBody(Counts):
    """Chains to go on from: ``concepts`` or ``vectors``."""

    concepts: ChainsOfTexts = Field(
        None, description="Chains of texts, as the bank spells them or in another case."
    )
    vectors: ChainsOfVectors = Field(None, description="(B, L, 768); only directions count.")
    lengths: list[StrictInt] | None = Field(
        None, description="With vectors: valid ones of each right-padded chain; all without it."
    )
    tmd: ChainsOfTmd = Field(
        None, description="(B, 16), of a model with TMD; zeros, which is unknown, without it."
    )
    codes: list[Codes] | None = Field(
        None, description="Instead of tmd: domain, task and modifier of each chain."
    )
    steps: StrictInt = Field(1, description="Steps ahead; each reads the best concept before it.")


class SessionBody(Counts):
    """What a session begins with; nothing begins an empty one."""

    concepts: Texts = Field(None, description="The chain so far.")
    vectors: Vectors = Field(None, description="Instead: its vectors, (L, 768).")
    tmd: Tmd = Field(None, description="16 numbers, of a model with TMD.")
    codes: Codes | None = Field(None, description="Instead: domain, task, modifier.")


class StepBody(Counts):
    """One more concept of a session's chain: ``concept`` or ``vector``."""

    concept: Text = Field(None, description="Its text.")
    vector: Vector = Field(None, description="Its vector, (768,).")


class ModelId(BaseModel):
    """The version that gave an answer."""

    name: str
    version: str


class NextConcept(BaseModel):
    """A concept that may come next; the score is its cosine to the predicted vector."""

    concept: str
    score: float


class StepAnswer(BaseModel):
    """The next concepts, best first, and the predicted unit vector where it was asked for."""

    next: list[NextConcept]
    vector: list[float] | None = None


class Prediction(BaseModel):
    """What follows one chain; ``concepts`` is null where vectors were sent."""

    concepts: list[str] | None
    steps: list[StepAnswer]


class PredictAnswer(BaseModel):
    """What follows each chain."""

    model: ModelId
    predictions: list[Prediction]


class SessionAnswer(StepAnswer):
    """A session after its newest vector; ``next`` is empty before the first one."""

    model: ModelId
    session: str
    position: int = Field(description="Vectors read so far.")
    seconds_left: float = Field(description="Until it ends, if it is not used.")


class ConceptsAnswer(BaseModel):
    """Known concepts for what was typed, the likeliest first."""

    model: ModelId
    concepts: list[str]


class ReadyAnswer(BaseModel):
    """What serves, and what is in the way of what should."""

    ready: bool
    model: ModelId
    source: str
    problem: str | None = Field(description="Why the version of the alias does not serve yet.")


class ScoringError(BaseModel):
    """The same in MLflow's form."""

    error_code: str
    message: str


class ErrorAnswer(BaseModel):
    """What was found, and what is wanted."""

    detail: str


def step_json(predicted: Predicted, chain: int, step: int, vectors: bool) -> dict[str, Any]:
    """Return one step of an answer: the next concepts, and the vector if it is wanted."""
    found: dict[str, Any] = {"next": predicted.next_of(chain, step)}
    if vectors:
        found["vector"] = predicted.vectors[chain, step]
    return found


def predict_json(predicted: Predicted, names: list[list[str]] | None, vectors: bool) -> bytes:
    """Return the JSON text of `PredictAnswer`.

    Raises:
        RequestError: it would hold too many vectors.
    """
    n_chains, n_steps = predicted.vectors.shape[:2]
    if vectors and n_chains * n_steps > MAX_JSON_VECTORS:
        raise RequestError(
            f"{n_chains * n_steps:,} vectors are asked for, at most {MAX_JSON_VECTORS:,} are "
            f"written as JSON; send the header 'Accept: {NPY}'",
            413,
        )
    return as_json({
        "model": predicted.version.identity,
        "predictions": [
            {
                "concepts": None if names is None else names[chain],
                "steps": [step_json(predicted, chain, step, vectors) for step in range(n_steps)],
            }
            for chain in range(n_chains)
        ],
    })  # fmt: skip


def as_json(content: Any) -> bytes:
    """Return JSON text; arrays may stand in it."""
    return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def as_npy(array: np.ndarray) -> bytes:
    """Return an array as the bytes of an ``.npy`` file."""
    stream = BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
