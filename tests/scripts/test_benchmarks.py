import json
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import __main__ as bench
from benchmarks import calibration, child, frame, models, shards, shards_command, timing
from benchmarks.frame import Goal, Result, Table
from benchmarks.run import Run
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


def test_rounds_end_when_the_time_is_over_and_keep_what_was_timed():
    calls = []
    found = timing.rounds(
        {name: lambda name=name: calls.append(name) for name in "abc"},
        n_rounds=3,
        warmup=0,
        over=lambda: len(calls) == 2,
    )
    assert calls == ["a", "b"]
    assert set(found) == {"a", "b"}


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


RESULT = Result(
    [Table("T", [{"what": "a", "ms": 1.5}], "a note")],
    [Goal("fast", "2.0", met=True), Goal("faster", "2.0", met=False), Goal("fastest")],
    ["figures/x.svg"],
)
MARKERS = "<!-- processors: begin -->\n<!-- processors: end -->\n"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A page with a place for the benchmark x, and no results yet."""
    path = tmp_path / "performance.md"
    path.write_text(f"# P\n{MARKERS}<!-- x: begin -->\nold\n<!-- x: end -->\nafter\n")
    monkeypatch.setattr(frame, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(frame, "PAGE", path)
    return path


def kept(folder: Path, **machine: str) -> None:
    """Keep `RESULT` as that of a machine with these values changed."""
    path = folder / "x.json"
    frame.write(path, "x", RESULT, quick=True, seconds=3.0, load=0.5)
    content = frame.read(path)
    path.write_text(json.dumps(content | {"machine": content["machine"] | machine}))
    frame.keep(path)


def test_a_result_is_kept_and_stands_between_its_markers(page, tmp_path):
    kept(tmp_path)
    frame.render()
    text = page.read_text()
    for wanted in (
        "quick run",
        "| a      | 1.50 |",
        "a note",
        "met",
        "**not met**",
        "| fastest | not run    |",
        "figures/x.svg",
    ):
        assert wanted in text
    assert "old" not in text
    assert text.endswith("<!-- x: end -->\nafter\n")
    frame.render()
    assert page.read_text() == text


def test_each_processor_has_its_section_and_its_column_of_goals(page, tmp_path):
    kept(tmp_path, processor="Ape (avx2)", cores=1)
    kept(tmp_path, processor="Bee (amx_bf16)", cores=2)
    kept(tmp_path, processor="Bee (amx_bf16)", cores=2)
    folders = sorted(path.name for path in frame.RESULTS.iterdir())
    assert folders == ["ape-avx2-1-core", "bee-amx-bf16-2-cores"]
    frame.render()
    text = page.read_text()
    assert (
        text.count("### Ape (avx2), 1 core\n") == text.count("### Bee (amx_bf16), 2 cores\n") == 1
    )
    summary = text[: text.index("<!-- processors: end -->")].splitlines()
    assert "| goal    | Ape (avx2), 1 core   | Bee (amx_bf16), 2 cores   |" in summary
    assert "| faster  | 2.0 **not met**      | 2.0 **not met**           |" in summary


def test_a_page_without_a_place_for_a_result_is_an_error(page, tmp_path):
    kept(tmp_path)
    page.write_text(MARKERS)
    with pytest.raises(SystemExit, match="x: begin"):
        frame.render()


def test_the_page_is_what_the_kept_results_render_to():
    text = frame.PAGE.read_text()
    results = [frame.read(path) for path in sorted(frame.RESULTS.glob("*/*.json"))]
    assert results
    assert frame.side_by_side(results) in text
    for content in results:
        assert frame.markdown(content) in text


def test_limits_grow_with_the_slower_of_two_measurements():
    reference = dict(calibration.REFERENCE)
    assert calibration.slowness(reference) == 1.0
    assert calibration.slowness({name: s / 2 for name, s in reference.items()}) == 1.0
    assert calibration.slowness(reference | {"copy": 3 * reference["copy"]}) == pytest.approx(3)
    assert calibration.slowness(dict.fromkeys(reference, 1e6)) == calibration.MOST


def test_a_run_says_not_run_until_a_row_is_measured(tmp_path):
    run = Run("x", tmp_path / "x.json", quick=False, limit_s=7.0, slowness=3.0)
    table, goal = run.table("T", [{"step": "a"}, {"step": "b"}]), run.goal("fast")
    run.fill(table.rows[0], {"ms": 1.5})
    content = frame.read(run.path)
    assert not content["complete"]
    text = frame.markdown(content)
    assert "| a      | 1.50 |" in text
    assert "not run: the limit of 21.0 s was reached" in text
    assert "stopped before its end" in text
    run.skip(table.rows[1], "no module named x")
    run.reach(goal, "1", met=True)
    assert frame.read(run.path)["complete"]
    assert "not run: no module named x" in frame.markdown(frame.read(run.path))


@pytest.fixture
def fakes(page, monkeypatch):
    """The command with benchmarks of `fake_benchmarks` alone, on a machine as the reference is."""
    limits = {"slow": 1, "hangs": 3, "broken": 10, "good": 10}
    helpers = Path(__file__).parents[1] / "helpers"
    monkeypatch.setenv("PYTHONPATH", f"{frame.ROOT}:{helpers}")
    monkeypatch.setattr(bench, "PACKAGE", "fake_benchmarks")
    monkeypatch.setattr(bench, "LIMITS", limits)
    monkeypatch.setattr(calibration, "slowness", lambda: 1.0)
    places = "".join(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in limits)
    page.write_text(MARKERS + places)

    def start(*names: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *names])
        try:
            bench.main()
            said = ""
        except SystemExit as error:
            said = str(error)
        return said, page.read_text()

    return start


@pytest.fixture
def in_this_process(monkeypatch):
    """Run the child's work here, by a clock that only sleeping moves.

    So nothing depends on how busy the machine is. A sleep longer than the time allowed is ended at
    once.
    """
    frame.machine()  # asks git, before `run` is replaced
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = clock.perf_counter = lambda: clock.now
    monkeypatch.setattr("benchmarks.run.time", clock)
    monkeypatch.setattr("benchmarks.timing.time", clock)

    def run(command, cwd, timeout):
        def sleep_or_end(seconds):
            if seconds > timeout:
                raise subprocess.TimeoutExpired(command, timeout)
            clock.now += seconds

        monkeypatch.setattr(time, "sleep", sleep_or_end)
        monkeypatch.setattr(sys, "argv", command[2:])
        child.main()
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(bench.subprocess, "run", run)


@pytest.mark.usefixtures("in_this_process")
def test_a_benchmark_that_is_stopped_keeps_its_rows_and_the_others_go_on(fakes):
    said, text = fakes("slow", "hangs", "good")
    assert said == ""
    slow = text[text.index("slow: begin") : text.index("slow: end")]
    assert re.search(r"\| contestant 0  \| 100 ", slow)
    assert slow.count("not run: the limit of 1.00 s was reached") >= 12
    assert "stopped before its end" in slow
    assert "**first**" in slow
    assert "**second**" in slow
    hangs = text[text.index("hangs: begin") : text.index("hangs: end")]
    assert "| a      | 1.50      |" in hangs
    assert "| b      |           | not run: the limit of 3.00 s was reached |" in hangs
    assert "| a      | 1.50 |" in text[text.index("good: begin") :]


def test_a_real_error_ends_the_command_with_an_error_and_keeps_the_last_result(fakes):
    said, text = fakes("broken", "good")
    assert "broken" in said
    assert "good" not in said
    assert "<!-- broken: begin -->\n<!-- broken: end -->" in text
    assert "| a      | 1.50 |" in text


@pytest.mark.usefixtures("in_this_process")
def test_a_quick_run_leaves_the_page_and_the_results(fakes, page):
    before = page.read_text()
    assert fakes("--quick", "good") == ("", before)
    assert not frame.RESULTS.exists()


def test_the_single_stack_is_named_apart_from_the_preset():
    assert models.SINGLE.members == 1
    assert models.SINGLE.n_memory == 0
    hedged = models.hedged_model()
    assert hedged.members > 1
    assert hedged.n_memory > 0


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
