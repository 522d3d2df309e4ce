"""How a file is damaged, and how a tree of values or a line of settings is changed.

Every function takes a `random.Random`, so that the same seed gives the same change.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any


class Raw(str):
    """Text that is written into JSON as it is."""


DEEP = 6000
EVIL_JSON = tuple(
    Raw(text)
    for text in (
        "null", "true", "false", "0", "-1", "1.5", "1e999", "NaN", "-Infinity", "9" * 5000,
        "-" + "9" * 5000, "1" * 400, "18446744073709551616", '""', '"1"', '"\\ud800"',
        '"\\udfff x"', '"\\u0000"', '"' + "x" * 100_000 + '"', '"é\\u2028"', "[]", "{}", "[null]",
        '{"": null}', "[[[]]]", "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1" + "}" * DEEP,
        "[" + "0," * 5000 + "0]", '"../../x"', "-0", "1e-400", '{"name": 1}',
    )
)  # fmt: skip

EVIL_TOML = (
    "9" * 4000, "0x" + "F" * 4000, "0x" + "F" * 300, "inf", "-inf", "nan", "1e400", "1e308",
    "1979-05-27", "1979-05-27T07:32:00Z", "07:32:00", "true", "'x'", '""', "[]", "{}",
    "[1, 'a', [2]]", "[" * 2000 + "]" * 2000, "{a = " * 500 + "1" + "}" * 500, "-1", "0", "1.5",
    "1e-320", '"\\ud800"', '"\\U0010FFFF"', "'''x\ny'''", "0b1", "1_0", "1__0", "=", "",
    "99999999999999999999",
)  # fmt: skip

EVIL_YAML = (
    "9" * 4000, "0x" + "F" * 3900, "0b" + "1" * 4000, ".inf", "-.inf", ".nan", "1e400", "1.0e+400",
    "~", "yes", "2001-99-99", "2001-12-14t21:59:43.10-05:00", "190:20:30", "[" * 1500 + "]" * 1500,
    "{a: " * 900 + "1" + "}" * 900, "&a [*a]", "*a", "!!int ''", "!!float x", "!!timestamp x",
    "!!bool x", "!!binary '='", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a]",
    "!!python/object/apply:os.getcwd []", "!!python/name:os.system", "!x y", "[]", "{}", "-1", "0",
    "1.5", "1.0e-320", "1.0e+29", '"\\ud800"', '"\\U0000DFFF"', "|\n  text", "'x", "{? [a] : 1}",
    "{<<: {a: 1}}", "[true, 1]", "\t",
)  # fmt: skip


def damaged(rng: Random, content: bytes, other: bytes) -> bytes:
    """Return bytes that a disk or a copy damaged; ``other`` is a file of which a part may come."""
    return rng.choice(DAMAGES)(rng, content, other)


def _flip(rng: Random, content: bytes, _: bytes) -> bytes:
    changed = bytearray(content)
    for _n in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _scramble(rng: Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:start] + rng.randbytes(end - start) + content[end:]


def _zero(rng: Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:start] + bytes(end - start) + content[end:]


def _cut(rng: Random, content: bytes, _: bytes) -> bytes:
    return content[: rng.choice((0, 1, rng.randrange(len(content)), len(content) - 1))]


def _delete(rng: Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:start] + content[end:]


def _repeat(rng: Random, content: bytes, _: bytes) -> bytes:
    start, end = _range(rng, content)
    return content[:end] + content[start:end] + content[end:]


def _extend(rng: Random, content: bytes, _: bytes) -> bytes:
    return content + rng.randbytes(rng.choice((1, 22, 5000)))


def _splice(rng: Random, content: bytes, other: bytes) -> bytes:
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def _replace(rng: Random, content: bytes, other: bytes) -> bytes:
    return rng.choice((other, b"\0" * len(content), b"PK\x05\x06" + bytes(18), rng.randbytes(999)))


DAMAGES: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flip, _flip, _flip, _scramble, _zero, _cut, _delete, _repeat, _extend, _splice, _replace,
)  # fmt: skip


def _range(rng: Random, content: bytes) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.choice((1, 4, 64, 4096)))


def changed_tree(rng: Random, value: Any, evil: Sequence[Any]) -> Any:
    """Return a tree of dicts and lists with one to three changes in random places."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        value = _changed(rng, value, evil)
    return value


def _changed(rng: Random, value: Any, evil: Sequence[Any]) -> Any:
    inner = isinstance(value, dict | list) and len(value) > 0
    if not inner or rng.random() < 0.1:
        return rng.choice((rng.choice(evil), [value], {"x": value}))
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = rng.choice(keys)
    if rng.random() < 0.7:
        copied = dict(value) if isinstance(value, dict) else list(value)
        copied[key] = _changed(rng, value[key], evil)
        return copied
    if isinstance(value, list):
        return rng.choice((value[:key] + value[key + 1 :], value * 2, [*value, rng.choice(evil)]))
    rest = {k: v for k, v in value.items() if k != key}
    name = rng.choice(("x", "", f"{key} ", str(key).upper()))
    return rng.choice((rest, rest | {name: value[key]}, value | {name: rng.choice(evil)},
                       value | {key: value[rng.choice(keys)]}))  # fmt: skip


def to_json(value: Any) -> str:
    """Return a tree as JSON; `Raw` texts stand in it as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        pairs = (f"{json.dumps(str(key))}: {to_json(item)}" for key, item in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(to_json, value)) + "]"
    return json.dumps(value)


def changed_lines(rng: Random, text: str, mark: str, evil: Sequence[str]) -> str:
    """Return settings with changed lines: other values, doubled, dropped, moved, odd keys.

    Args:
        rng: what decides.
        text: lines of ``key MARK value``.
        mark: what stands between key and value.
        evil: values that are written in place of others.
    """
    lines = text.splitlines()
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(lines))
        key, found, value = lines[at].partition(mark)
        lines[at : at + 1] = rng.choice((
            [f"{key}{found} {rng.choice(evil)}"],
            [f"{key}{found} {rng.choice(evil)}"],
            [f"{key}{found} {rng.choice(evil)}"],
            [lines[at], lines[at]],
            [],
            [f"{key}x{found}{value}"],
            [rng.choice(lines), lines[at]],
            [".".join(["a"] * rng.choice((3, 1500))) + f" {mark} 1", lines[at]],
            [lines[at].replace("[", "[[").replace("]", "]]")],
            [lines[at] + rng.choice(("\0", "\x7f", "\ufeff", "#", "'", '"', "\\"))],
        ))  # fmt: skip
        lines = lines or [""]
    return "\n".join(lines)
