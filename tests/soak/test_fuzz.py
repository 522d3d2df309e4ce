"""The short form of the fuzz campaign, and what the campaign itself would notice."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest

from ocp_mamba.errors import DatasetError
from soak import fuzz, opening
from soak.mutations import EVIL_JSON, Raw, changed_tree, damaged, to_json


def test_no_damaged_or_forged_file_gets_through(capsys):
    results = fuzz.run(True, print)
    lost = [f"{result.case}: {result.detail}" for result in results if result.outcome == "lost"]
    assert not lost
    count = Counter(result.case for result in results)
    for name in fuzz.NAMES.values():
        assert {f"{name}, {how}" for how in ("whole", "damaged", "forged")} <= set(count)
    refused = sum(result.outcome == "refused" for result in results)
    assert 0.5 * len(results) < refused < len(results)


def test_the_full_form_has_ten_thousand_files():
    assert sum(fuzz.FILES.values()) == 10_000


@pytest.fixture(scope="module")
def watch():
    return opening.Watch()


def refuse(path):
    raise DatasetError(f"{path}: no")


def hide(path):
    raise DatasetError("no")


def break_down(path):
    raise KeyError("x")


def write(path):
    path.write_text("x")
    return "same"


def run(path):
    import subprocess

    subprocess.run(["true"], check=True)
    return "same"


@pytest.mark.parametrize(
    ("opens", "outcome", "detail"),
    [
        (lambda path: "same", "survived", ""),
        (refuse, "refused", "f.x: no"),
        (hide, "lost", "the error does not name the file"),
        (break_down, "lost", "KeyError: 'x'"),
        (lambda path: "other", "lost", "it loads, and holds something else than was written"),
        (write, "lost", "opening it did open"),
        (run, "lost", "opening it did subprocess.Popen"),
        (lambda path: [0] * 10**7 and "same", "lost", "MiB"),
    ],
)
def test_what_came_of_a_file_is_told_apart(opens, outcome, detail, watch, tmp_path, monkeypatch):
    monkeypatch.setitem(opening.OPENERS, "npz", opens)
    monkeypatch.setattr(opening, "PEAK_LIMIT_MIB", 50)
    found = opening.judged("npz", tmp_path / "f.x", ["same"], watch)
    assert found[0] == outcome, found
    assert detail in found[1]


def test_a_process_that_a_file_has_ended_is_made_again(tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nlr = 0.1\n")
    opener = fuzz.Opener(tmp_path)
    try:
        assert opener.ask("toml", tmp_path / "run.toml", [])["outcome"] == "survived"
        opener._process.kill()
        opener._process.wait()
        answer = opener.ask("toml", tmp_path / "run.toml", [])
        assert (answer["outcome"], answer["detail"]) == ("lost", "the process ended with -9")
        assert opener.ask("toml", tmp_path / "run.toml", [])["outcome"] == "survived"
        (opener._inside / "unpickled").touch()
        answer = opener.ask("toml", tmp_path / "run.toml", [])
        assert answer["detail"] == "opening it wrote ['unpickled']"
    finally:
        opener.end()


def test_the_same_number_makes_the_same_file():
    for number in range(200):
        content = bytes(range(256)) * 9
        one, two = (damaged(Random(number), content, b"other") for _ in range(2))
        assert one == two
    tree = {"a": [1, {"b": None}], "c": "d"}
    texts = {to_json(changed_tree(Random(n), tree, EVIL_JSON)) for n in range(200)}
    assert len(texts) > 100
    assert json.loads(to_json(tree)) == tree
    assert to_json({"a": Raw("[NaN]")}) == '{"a": [NaN]}'
