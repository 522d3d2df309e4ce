"""Text that was damaged or forged becomes one of our errors, with the file and the place."""

from __future__ import annotations

import json

import pytest

from ocp_mamba.errors import DatasetError, QueueError, shown
from ocp_mamba.system import parsing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "p: not JSON"),
        ("[" * 100_000, "p: not JSON that can be read: it is nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "p: not JSON .*5000 digits"),
        ('{"\\ud800": 1}', "p: not JSON .* half a surrogate pair"),
        ('{"a": [{"b": "\\udc00"}]}', "p: not JSON .* half a surrogate pair"),
        ("[]", "p: JSON list found, an object wanted"),
    ],
)
def test_a_text_that_is_no_json_object_is_refused(text, message):
    with pytest.raises(DatasetError, match=message):
        parsing.json_object(text, DatasetError, "p")


def test_whole_surrogate_pairs_and_nan_are_read():
    assert parsing.json_object('{"a": "\\ud83d\\ude00"}', DatasetError, "p") == {"a": "😀"}
    assert str(parsing.json_object('{"a": NaN}', DatasetError, "p")["a"]) == "nan"


def test_lines_are_numbered_as_an_editor_numbers_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": "\xe2\x80\xa8"}\n{')
    lines = parsing.json_lines(path, QueueError, "queue")
    assert next(lines) == (1, {"a": 1})
    assert next(lines) == (3, {"a": "\u2028"})
    with pytest.raises(QueueError, match=r"queue .*a\.jsonl, line 4: not JSON"):
        next(lines)


def test_a_line_without_an_end_is_refused_before_it_is_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parsing, "MAX_LINE_BYTES", 100)
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a": "x" * 200}))
    with pytest.raises(QueueError, match=r"a\.jsonl, line 1: longer than 100 bytes"):
        list(parsing.json_lines(path, QueueError, "queue"))


@pytest.mark.parametrize("name", ["absent", "nul\0byte", "."])
def test_what_cannot_be_opened_is_named(name, tmp_path):
    for read in (parsing.read_settings, lambda *given: list(parsing.json_lines(*given))):
        with pytest.raises(QueueError, match=r"queue .*cannot be read"):
            read(tmp_path / name, QueueError, "queue")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        ("x" * 500, "'" + "x" * 46),
        pytest.param(10**5000, "a very large int", id="digits"),
        (list(range(10**6)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        ("\ud800", "'\\ud800'"),
    ],
)
def test_a_value_is_shown_short(value, text):
    found = shown(value)
    assert found.startswith(text)
    assert len(found) <= 100
    assert found.encode()


def test_a_value_that_contains_itself_many_times_is_shown_at_once():
    bomb: list[object] = ["x"]
    for _ in range(200):
        bomb = [bomb] * 10
    assert len(shown(bomb)) <= 100
