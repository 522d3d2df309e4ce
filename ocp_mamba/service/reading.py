"""The checks on a request's body, and its conversion to the chains that a version predicts from."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from io import BytesIO
from typing import Any, TypeVar

import numpy as np
import orjson
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ValidationError

from ocp_mamba.config import D_VECTOR
from ocp_mamba.data.build.tmd import dense
from ocp_mamba.errors import RequestError
from ocp_mamba.service.schemas import MAX_NAMED, Counts, PredictBody
from ocp_mamba.service.settings import ServiceSettings
from ocp_mamba.service.version import Chain, Version
from ocp_mamba.serving.request import read_request

B = TypeVar("B", bound=BaseModel)


def parse_json(body: bytes) -> Any:
    """Return what JSON text holds.

    Raises:
        RequestError: it is no JSON, is nested deeper than 1,024, or has a number out of range.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError(
            f"the body is no JSON: {str(error)[:200]} (of {len(body):,} bytes; NaN, Infinity and "
            "numbers above 1.8e308 are no JSON)"
        ) from None


def body_of(kind: type[B], body: bytes) -> B:
    """Return a body of a kind out of JSON text.

    Raises:
        RequestError: it is no JSON, or a key or a value is not what is wanted.
    """
    content = parse_json(body)
    if not isinstance(content, dict):
        raise RequestError(
            f"the body is {_kind(content)}; a JSON object with {_keys(kind)} is wanted"
        )
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise RequestError(_told(error, kind)) from None


def _told(error: ValidationError, kind: type[BaseModel]) -> str:
    """The first problem that pydantic found, without what was sent."""
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = "".join(f"[{p}]" if isinstance(p, int) else str(p)[:60] for p in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{place}: {first['msg'][:200]}"
    known = list(kind.model_fields)
    near = difflib.get_close_matches(place, known, 1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"the key {place!r} is unknown; {meant}known are {_keys(kind)}"


def _keys(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def npy_array(body: bytes) -> np.ndarray:
    """Return the array in an ``.npy`` body, which must be as large as its head says.

    Raises:
        RequestError: it is no ``.npy`` of floating-point numbers.
    """
    stream = BytesIO(body)
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy evaluates the head, which may hold anything
        raise RequestError(
            f"the body is no .npy file of version 1 or 2: {type(error).__name__}; numpy.save "
            "writes one"
        ) from None
    if dtype.kind != "f" or dtype.itemsize > 8 or fortran:
        order = " in Fortran order" if fortran else ""
        raise RequestError(
            f"the .npy body holds {str(dtype)[:40]}{order}; float16, float32 or float64 in C "
            "order is wanted"
        )
    size, wanted = len(body) - stream.tell(), dtype.itemsize
    for n in shape:
        wanted *= int(n)
    if size != wanted:
        raise RequestError(
            f"the .npy body of shape {str(shape)[:80]} has {size:,} bytes of numbers, "
            f"{str(wanted)[:20]} wanted"
        )
    return np.frombuffer(body, dtype, offset=stream.tell()).reshape(shape)


def chains_of(
    version: Version, body: PredictBody, settings: ServiceSettings
) -> tuple[list[Chain], list[list[str]] | None]:
    """Return the chains of a request, and their concepts as the bank spells them, if it has any.

    Raises:
        RequestError: what was sent is not what is wanted, or too much at once.
    """
    check_counts(version, body, body.steps, settings)
    if (body.concepts is None) == (body.vectors is None):
        found = "neither" if body.concepts is None else "both"
        raise RequestError(f"concepts or vectors is wanted, {found} found")
    if body.tmd is not None and body.codes is not None:
        raise RequestError("tmd and codes say the same; send one of them")
    if body.concepts is not None:
        if body.lengths is not None:
            raise RequestError("lengths goes with vectors; a chain of concepts has its own length")
        chains, names = _chains_of_concepts(version, body, settings)
    else:
        chains, names = _chains_of_vectors(version, body), None
    _check_size(chains, body, settings)
    return chains, names


def check_counts(version: Version, asked: Counts, steps: int, settings: ServiceSettings) -> None:
    """Refuse a ``top_k`` or a number of steps out of range.

    Raises:
        RequestError: one is; names it.
    """
    most = min(settings.max_top_k, len(version.words.bank)) if asked.top_k else 0
    for name, value, least, limit in (
        ("top_k", asked.top_k, 0, most),
        ("steps", steps, 1, settings.max_steps),
    ):
        if not least <= value <= limit:
            raise RequestError(
                f"{name} is {str(value)[:20]}; a whole number from {least} to {limit:,} is wanted"
            )


def _chains_of_concepts(
    version: Version, body: PredictBody, settings: ServiceSettings
) -> tuple[list[Chain], list[list[str]]]:
    asked = body.concepts
    if isinstance(asked, list):
        _check_positions(sum(len(c) for c in asked if isinstance(c, list)), len(asked), settings)
    codes: Any = body.codes
    read = version.words.read(asked, codes)
    tmd = None if read.tmd is None else read.tmd.numpy()
    if body.tmd is not None:
        tmd = _tmd_of(version, body.tmd, len(read.concepts))
    vectors, lengths = read.vectors.numpy(), read.lengths.tolist()
    return [
        Chain(vectors[row, :length], None if tmd is None else tmd[row])
        for row, length in enumerate(lengths)
    ], read.concepts


def _chains_of_vectors(version: Version, body: PredictBody) -> list[Chain]:
    config = version.model.config
    vectors = numbers_of("vectors", body.vectors)
    tmd = None
    if body.tmd is not None:
        tmd = _tmd_of(version, body.tmd, len(vectors) if vectors.ndim else 0)
    elif config.d_tmd or body.codes is not None:
        unknown = [[0, 0, 0]] * (len(vectors) if vectors.ndim else 0)
        codes = body.codes if body.codes is not None else unknown
        tmd = _tmd_of_codes(version, codes, len(unknown))
    given: Any = vectors if tmd is None else {"seq_vectors": vectors, "tmd": tmd}
    try:
        unit, checked, lengths = read_request(given, body.lengths, config)
    except MlflowException as error:
        raise RequestError(str(error.message).replace("seq_vectors", "vectors")) from None
    except OverflowError:
        raise RequestError("lengths has a number that no chain is as long as") from None
    with np.errstate(over="ignore"):  # infinite is what the statistics leave out
        norms = np.linalg.norm(vectors, axis=-1)
    rows, codes_of = unit.numpy(), None if checked is None else checked.numpy()
    return [
        Chain(rows[b, :length], None if codes_of is None else codes_of[b], norms[b, :length])
        for b, length in enumerate(lengths.tolist())
    ]


def _tmd_of_codes(version: Version, codes: Sequence[Sequence[int]], B: int) -> np.ndarray | None:
    if not version.model.config.d_tmd:
        raise RequestError("codes are given, and this model takes no TMD codes")
    try:
        rows = np.asarray(codes, dtype=np.int64)
        if rows.shape != (B, 3):
            raise ValueError(f"shape {rows.shape} found, ({B}, 3) wanted")
        return dense(rows)
    except (TypeError, ValueError, OverflowError) as error:
        raise RequestError(
            f"codes: {error}; wanted: domain, task, modifier of each chain"
        ) from None


def _tmd_of(version: Version, value: Any, B: int) -> np.ndarray:
    width = version.model.config.d_tmd
    if not width:
        raise RequestError("tmd is given, and this model takes no TMD vectors")
    tmd = numbers_of("tmd", value).astype(np.float32)
    if tmd.shape != (B, width):
        raise RequestError(f"tmd has shape {tmd.shape}, wanted ({B}, {width})")
    if not np.isfinite(tmd).all():
        raise RequestError("tmd has a number that is not finite as a 32-bit one")
    return tmd


def numbers_of(name: str, value: Any) -> np.ndarray:
    """Return lists of numbers as an array.

    Raises:
        RequestError: they are ragged, or hold something else.
    """
    if isinstance(value, np.ndarray):
        return value
    if not isinstance(value, list):
        raise RequestError(f"{name} is {_kind(value)}; lists of numbers are wanted")
    try:
        array = np.array(value)
    except (ValueError, OverflowError, MemoryError):
        raise RequestError(
            f"{name} is ragged: its lists have different lengths or depths; (B, L, {D_VECTOR}) "
            "is wanted, shorter chains padded at their end and lengths given"
        ) from None
    if array.dtype.kind not in "fiu":
        raise RequestError(f"{name} holds something else than numbers; lists of numbers are wanted")
    return array


def _check_size(chains: Sequence[Chain], body: PredictBody, settings: ServiceSettings) -> None:
    _check_positions(sum(len(chain.vectors) for chain in chains), len(chains), settings)
    steps = len(chains) * body.steps
    for found, most, what in (
        (steps, settings.max_positions, "chains times steps"),
        (steps * body.top_k, MAX_NAMED, "chains times steps times top_k"),
    ):
        if found > most:
            raise RequestError(f"{what} is {found:,}, at most {most:,} are answered at once", 413)


def _check_positions(found: int, B: int, settings: ServiceSettings) -> None:
    if settings.max_queue < B:
        raise RequestError(f"{B:,} chains found, at most {settings.max_queue:,} are taken", 413)
    if found > settings.max_positions:
        raise RequestError(
            f"the chains have {found:,} positions in all, at most {settings.max_positions:,} are "
            "taken at once; send fewer",
            413,
        )
