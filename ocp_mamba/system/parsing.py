"""Reading text that may be damaged or forged: JSON, JSON lines, and files of settings.

A parser of such text may raise anything: `RecursionError` for deep nesting, `ValueError` for an
integer of 5,000 digits, `MemoryError`. Here each becomes one of our errors, whose type the caller
chooses, with the file and the place.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ocp_mamba.errors import OcpMambaError, first_line, shown

MAX_LINE_BYTES = 1 << 24
"""Longest line of a file of JSON lines, 16 MiB."""

MAX_SETTINGS_BYTES, MAX_SETTINGS_LINE = 1 << 16, 4096
"""Size of a file of settings, and of a line in it. Parsers of TOML and YAML take minutes for some
texts of a megabyte."""

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

T = TypeVar("T")
Failure = type[OcpMambaError]


def parse(parser: Callable[[str], T], text: str, kind: str, error: Failure, place: str) -> T:
    """Return what a parser makes of a text.

    Args:
        parser: such as `json.loads`.
        text: what to parse.
        kind: its format, for messages.
        error: the class of the error that is raised.
        place: file, and line or key, for messages.

    Raises:
        OcpMambaError: of the class ``error``; the text cannot be parsed, or holds half a surrogate
            pair, which is no character and cannot be written.
    """
    try:
        parsed = parser(text)
        if "\\u" in text or not text.isascii():
            _check_characters(parsed)
    except RecursionError as failure:
        raise error(f"{place}: not {kind} that can be read: it is nested too deeply") from failure
    except Exception as failure:
        raise error(f"{place}: not {kind} ({first_line(failure)})") from failure
    return parsed


def json_object(text: str, error: Failure, place: str) -> dict[str, Any]:
    """Return the JSON object in a text; arguments and errors are those of `parse`."""
    parsed = parse(json.loads, text, "JSON", error, place)
    if not isinstance(parsed, dict):
        raise error(f"{place}: JSON {type(parsed).__name__} found, an object wanted")
    return parsed


def json_line(line: bytes, error: Failure, place: str) -> dict[str, Any]:
    """Return the JSON object in a line of UTF-8; arguments and errors are those of `parse`."""
    return json_object(_decoded(line, error, place), error, place)


def json_lines(path: Path, error: Failure, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the JSON object of each line of a file; blank lines are skipped.

    Args:
        path: the file, UTF-8 with or without a byte order mark.
        error: the class of the error that is raised.
        name: what the file is, for messages, such as "chain file".

    Raises:
        OcpMambaError: of the class ``error``; the file cannot be read, or a line is no object.
    """
    try:
        with path.open("rb") as file:
            lines = iter(lambda: file.readline(MAX_LINE_BYTES + 1), b"")
            for number, line in enumerate(lines, start=1):
                place = f"{name} {path}, line {number}"
                if len(line) > MAX_LINE_BYTES:
                    raise error(f"{place}: longer than {MAX_LINE_BYTES:,} bytes")
                line = line.removeprefix(BYTE_ORDER_MARK if number == 1 else b"")
                if line.strip():
                    yield number, json_line(line, error, place)
    except (OSError, ValueError) as failure:
        if isinstance(failure, OcpMambaError):
            raise
        raise error(f"{name} {path}: cannot be read ({first_line(failure)})") from failure


def read_text(path: Path, error: Failure, name: str, longest: int) -> str:
    """Return the text of a UTF-8 file of a limited size; arguments are those of `json_lines`.

    Raises:
        OcpMambaError: of the class ``error``; the file cannot be read, or is longer than
            ``longest`` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(longest + 1)
    except (OSError, ValueError) as failure:
        raise error(f"{name} {path}: cannot be read ({first_line(failure)})") from failure
    if len(content) > longest:
        raise error(f"{name} {path}: longer than {longest:,} bytes")
    return _decoded(content, error, f"{name} {path}")


def read_settings(path: Path, error: Failure, name: str) -> str:
    """Return the text of a file of settings, which is small and has no long line.

    Raises:
        OcpMambaError: as `read_text`, or a line is longer than `MAX_SETTINGS_LINE`.
    """
    text = read_text(path, error, name, MAX_SETTINGS_BYTES)
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_SETTINGS_LINE:
            raise error(
                f"{name} {path}, line {number}: longer than {MAX_SETTINGS_LINE:,} characters"
            )
    return text


def _decoded(content: bytes, error: Failure, place: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as failure:
        found = content[failure.start : failure.start + 1].hex()
        raise error(
            f"{place}: not UTF-8 text (byte 0x{found} at byte {failure.start})"
        ) from failure


def _check_characters(parsed: object) -> None:
    """Refuse half surrogate pairs in any text of a parsed value, keys included."""
    waiting = [parsed]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as failure:
                raise ValueError(
                    f"{shown(value)} holds half a surrogate pair, which is no character"
                ) from failure
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
