import json

import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import frame, shards, shards_command, timing
from benchmarks.frame import Goal, Result, Table
from ocp_mamba.data.fingerprint import fingerprint_of
from ocp_mamba.data.load import load_dataset


def test_rounds_time_every_contestant_and_slow_ones_sit_out():
    calls = []
    clock = iter(range(1000))
    found = timing.rounds(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, n_rounds=3, warmup=2
    )
    assert sorted(calls) == ["a"] * 5 + ["b"] * 5
    assert all(len(t.seconds) == 3 and t.best <= t.median for t in found.values())
    slow = timing.rounds({"a": lambda: next(clock)}, n_rounds=9, warmup=1, limit_s=0.0)
    assert len(slow["a"].seconds) == 2


def test_peak_memory_is_that_of_the_call():
    peak = timing.peak_mib(lambda: bytearray(64 * timing.MIB))
    if peak is None:
        pytest.skip("this system does not count memory")
    assert 60 < peak < 100


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (1234567, "1,234,567"), (0.01234, "0.0123"), (1234.5, "1,234"), ("x", "x"),
     (0.0, "0"), (9.876, "9.88"), (float("nan"), "nan")],
)  # fmt: skip
def test_cells_are_shown_with_three_digits(value, text):
    assert frame.shown(value) == text


def test_a_result_is_kept_and_stands_between_its_markers(tmp_path, monkeypatch):
    page = tmp_path / "performance.md"
    page.write_text("# P\n<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    monkeypatch.setattr(frame, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(frame, "PAGE", page)
    result = Result(
        [Table("T", [{"what": "a", "ms": 1.5}], "a note")],
        [Goal("fast", "2.0", met=True), Goal("faster", "2.0", met=False)],
        ["figures/x.svg"],
    )
    path = frame.write("x", result, quick=True, seconds=3.0, load=0.5)
    assert json.loads(path.read_text())["machine"]["torch"]
    frame.render()
    text = page.read_text()
    for wanted in (
        "quick run",
        "| a      | 1.50 |",
        "a note",
        "met",
        "**not met**",
        "figures/x.svg",
    ):
        assert wanted in text
    assert "old" not in text
    assert text.endswith("<!-- x: end -->\nafter\n")
    frame.render()
    assert page.read_text() == text


def test_a_page_without_a_place_for_a_result_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / "p.md").write_text("nothing")
    monkeypatch.setattr(frame, "RESULTS", tmp_path)
    monkeypatch.setattr(frame, "PAGE", tmp_path / "p.md")
    with pytest.raises(SystemExit, match="x: begin"):
        frame.render()


@pytest.mark.parametrize("name", bench.LIMITS)
def test_every_benchmark_has_a_module_and_a_place_on_the_page(name):
    assert (frame.ROOT / "benchmarks" / f"{name}.py").is_file()
    assert frame.PAGE.read_text().count(f"<!-- {name}: begin -->") == 1


def test_all_benchmarks_together_stay_below_ten_minutes():
    assert sum(bench.BENCHMARKS.values()) <= 600


def test_a_folder_of_shards_is_dealt_out_anew(tmp_path):
    folder = tmp_path / "data"
    shards.make(folder, 0.003, 0.7)
    before = load_dataset(folder)
    shares = np.bincount(before.split, minlength=3) / before.n_chains
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.05)
    shards.resplit(folder, 0.1)
    after = load_dataset(folder)
    shares = np.bincount(after.split, minlength=3) / after.n_chains
    np.testing.assert_allclose(shares, [0.1, 0.45, 0.45], atol=0.05)
    assert after.fingerprint == fingerprint_of(after, np.ascontiguousarray) != before.fingerprint
    np.testing.assert_array_equal(after.chain_values, before.chain_values)


@pytest.mark.slow
def test_the_whole_command_is_followed_from_stage_to_stage(tmp_path):
    shards.make(tmp_path / "data", 0.003, 0.7)
    (tmp_path / "work").mkdir()
    flags = ("--n-layers", "1", "--members", "1", "--eval-pool", "100", "--eval-train", "50")
    stages = shards_command.train(tmp_path / "data", tmp_path / "work", *flags)
    assert [s.name for s in stages] == [
        shards_command.FIRST, *shards_command.STAGES.values(), shards_command.LAST
    ]  # fmt: skip
    assert all(s.seconds >= 0 for s in stages)
    assert all(s.anonymous <= s.both for s in stages)  # a short stage may have no reading
    assert max(s.anonymous for s in stages) > 0.2
    page = tmp_path / "page.md"
    edges = (
        "<!-- benchmarks/shards.py, command: begin -->\n<!-- benchmarks/shards.py, command: end -->"
    )
    page.write_text(f"before\n{edges}\nafter\n")
    plain = [vars(s) for s in stages]
    run = {"stages": plain, "load": 1.5, "said": "evaluated whole", "sequences": {"train": 7}}
    shards.write(page, {"reference": run})
    said = page.read_text()
    assert said.startswith("before\n")
    assert said.endswith("after\n")
    assert "**most** (load average 1.5)" in said
    assert "30 MB, to its end: sequences train 7. evaluated whole" in said
