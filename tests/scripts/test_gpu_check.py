"""`scripts/gpu_check.py` without a GPU: a CPU stands in, and nothing of that reaches a page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_maker import make_dataset
from trainings import TINY

from benchmarks import frame
from benchmarks.gpu import (
    build_conv,
    environment,
    equality,
    gpu_tests,
    place,
    prepare,
    quality,
    runner,
    stages,
    stepping,
    training,
)
from benchmarks.run import Run
from ocp_mamba.data.load import load_dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator

ROOT = Path(__file__).resolve().parents[2]
BLOCKED = {"mlflow", "faiss", "optuna", "fastapi", "sqlalchemy", "sentence_transformers"}
"""What the bare machine does not have; `mamba_ssm` and `causal_conv1d` are not there either."""


@pytest.fixture
def stand_in():
    return replace(place.find_place(stand_in=True), config=TINY)


@pytest.fixture
def run(tmp_path):
    found = Run("stage", tmp_path / "stage.json", quick=False, limit_s=600)
    found.extra = {"stand_in": True, "card": "stand-in: CPU", "error": ""}
    return found


def filled(run: Run) -> bool:
    """Whether every row and goal of a run has been measured."""
    rows = [row for table in run.result.tables for row in table.rows]
    return (
        bool(rows)
        and all(frame.REMARK not in row for row in rows)
        and all(goal.met is not None for goal in run.result.goals)
    )


# --- the stages -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stage",
    [environment, stepping, pytest.param(equality, marks=pytest.mark.slow)],
    ids=lambda stage: stage.__name__,
)
def test_a_stage_runs_where_a_cpu_stands_in_and_says_so(stage, run, stand_in, monkeypatch):
    monkeypatch.setattr(equality, "SHAPES_DRAWN", 2)
    stage.main(run, stand_in)
    assert filled(run)
    titles = [table.title for table in run.result.tables]
    assert titles
    assert all(title.startswith(place.STAND_IN) for title in titles)
    assert all(goal.what.startswith(place.STAND_IN) for goal in run.result.goals)


def test_every_contestant_takes_a_training_step(run, stand_in):
    small = replace(stand_in, shapes={"short chains": (2, 6)}, rounds=1)
    training.main(run, small)
    assert filled(run) is False  # the goal of the long chains was not measured
    (table,) = run.result.tables
    assert [row["step"] for row in table.rows] == list(training.NAMES)
    assert all(row["best ms"] > 0 for row in table.rows)


def test_a_contestant_that_cannot_run_ends_none_of_the_others(run, stand_in, monkeypatch):
    monkeypatch.setattr(training, "NAMES", (training.PLAIN, training.THEIRS))
    original = training.contestant

    def contestant(name, *given):
        if name == training.THEIRS:
            raise ImportError("no Mamba2 here")
        return original(name, *given)

    monkeypatch.setattr(training, "contestant", contestant)
    training.main(run, replace(stand_in, shapes={"short chains": (2, 4)}, rounds=1))
    ours, theirs = run.result.tables[0].rows
    assert ours["best ms"] > 0
    assert theirs[frame.REMARK] == "not run: ImportError: no Mamba2 here"


@pytest.mark.slow
def test_without_faiss_the_metrics_are_those_of_the_real_evaluation():
    """On the default dataset, by a predictor whose P@1 is neither 0 nor 1."""
    dataset = load_dataset(quality.DATA)

    class Next:
        """Looks ahead for the next vector, except at the end of the batch's longest chains."""

        def predict_all(self, vectors, tmd=None):
            return torch.nn.functional.normalize(vectors.roll(-1, dims=1) + 1e-3, dim=-1)

    found = validator(dataset, quality.ProductIndex(dataset.bank))(Next())
    assert found == validator(dataset, BankIndex(dataset.bank))(Next())
    assert 0 < found["retrieval_p1"] < 1


def test_the_product_finds_what_faiss_finds_also_in_the_precision_of_training():
    dataset = make_dataset(n_concepts=200)
    queries = np.random.default_rng(0).standard_normal((50, 768)).astype(np.float32)
    scores, ids = BankIndex(dataset.bank).search(queries, 10)
    with torch.autocast("cpu", torch.bfloat16):
        found, rows = quality.ProductIndex(dataset.bank).search(queries, 10)
    assert np.array_equal(rows, ids)
    assert found == pytest.approx(scores, rel=1e-5, abs=1e-5)
    assert quality.ProductIndex(dataset.bank).search(queries, 500)[1].shape == (50, 200)


def test_the_quality_of_a_trained_model_is_the_same_on_both_devices(run, stand_in, monkeypatch):
    dataset = make_dataset(n_chains=80, n_concepts=60, tmd=False)
    monkeypatch.setattr(quality, "load_dataset", lambda path: dataset)
    quality.main(run, stand_in)
    assert filled(run)
    here, there = run.result.tables[0].rows
    assert here["cosine"] == pytest.approx(there["cosine"], abs=1e-3)
    assert here["capture"] == "off (the device is cpu)"


def test_counted_tests_are_those_that_ran():
    counted = gpu_tests.Counted()

    class Report:
        def __init__(self, when, outcome):
            self.when, self.outcome, self.nodeid = when, outcome, f"{when} {outcome}"
            self.failed = outcome == "failed"

    for report in (Report("setup", "passed"), Report("call", "passed"), Report("call", "failed"),
                   Report("setup", "failed"), Report("setup", "skipped")):  # fmt: skip
        counted.pytest_runtest_logreport(report)
    assert counted.outcomes == {"passed": 1, "failed": 2, "skipped": 1}
    assert counted.failed == ["call failed", "setup failed"]


def test_the_stages_together_stay_below_eight_minutes():
    assert stages.TOTAL_S < 480
    assert all(stage.limit_s < stages.TOTAL_S for stage in stages.STAGES)


def test_every_stage_can_be_imported_on_a_bare_machine():
    """Without mlflow, faiss, optuna and the like: all of it, the tests for a GPU included."""
    code = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
sys.path[:0] = ["tests/helpers"]
import importlib
from benchmarks.gpu.stages import STAGES
for stage in STAGES:
    importlib.import_module(f"benchmarks.gpu.{{stage.name}}").main
import benchmarks.gpu.warm, ocp_mamba.model.compiled_step
import data_maker, postgres, servers
from benchmarks.gpu import quality
dataset = data_maker.make_dataset()
quality.ProductIndex(dataset.bank).search(dataset.bank[:3], 2)
print("all imported")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.endswith("all imported\n"), done.stderr


# --- prepare ----------------------------------------------------------------------------------


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """What an index would give, as small files."""

    def pip(verb, package, *words):
        (Path(words[-1]) / f"{package.replace('==', '-')}.whl").write_bytes(b"0" * 1000)

    monkeypatch.setattr(prepare, "pip", pip)
    monkeypatch.setattr(prepare, "FOLDER", tmp_path / "prepared")
    return tmp_path / "prepared"


def test_prepare_collects_what_is_missing_and_prints_the_command(packages, capsys):
    prepare.prepare(None, "9.0", None)
    assert {path.name for path in packages.rglob("*.*")} == {
        "mamba-ssm-2.3.2.post1.whl", "causal-conv1d-1.7.0.whl", "prepared.json"
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "python3 scripts/gpu_check.py run --out gpu_results" in printed
    assert printed.count("not-run: no Python was named") == 2
    assert json.loads((packages / prepare.NOTE).read_text())["commit"] == prepare.commit()


def test_a_folder_that_is_too_large_is_refused(packages, monkeypatch):
    monkeypatch.setattr(prepare, "LIMIT_BYTES", 1500)
    with pytest.raises(SystemExit, match="more than"):
        prepare.prepare(None, "9.0", None)


def test_a_python_of_another_version_is_not_tried():
    version = "{}.{}".format(*sys.version_info)
    found = prepare.tried(sys.executable)
    if version != prepare.PYTHON:
        assert found == f"not-run: {sys.executable} is Python {version}"


def test_without_nvcc_a_build_says_so(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="needs CUDA's compiler nvcc"):
        build_conv.toolkit()


# --- the runner -------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A prepared folder without packages."""
    prepared = tmp_path / "prepared"
    (prepared / prepare.WHEELS).mkdir(parents=True)
    (prepared / prepare.NOTE).write_text(json.dumps({"commit": "abc1234"}))
    monkeypatch.setattr(runner, "FOLDER", prepared)
    return prepared


def write_stage(monkeypatch, tmp_path, code):
    """Let every stage be this code, with the path of its result in FILE."""
    module = tmp_path / "a_stage.py"
    module.write_text(
        f"import json, sys, time\nfrom pathlib import Path\nFILE = Path(sys.argv[2])\n{code}"
    )

    def process(words, environment, log):
        environment = environment | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        return original(["a_stage", *words[1:]], environment, log)

    original = runner.process
    monkeypatch.setattr(runner, "process", process)


RESULT = """
from benchmarks import frame
table = frame.Table("T", [{"what": "a", "ms": 1.5}])
frame.write(FILE, sys.argv[1], frame.Result([table]), quick=False, seconds=1.0, load=0.0,
            extra={"stand_in": True, "card": "stand-in: CPU", "error": ""})
"""


def environment_of(tmp_path):
    return os.environ | {"TRITON_CACHE_DIR": str(tmp_path / "triton")}


class LimitOnceThereIs:
    """A process that is over its limit as soon as it has written a file."""

    def __init__(self, started, path):
        self.pid, self._started, self._path = started.pid, started, path

    def wait(self, timeout=None):
        while timeout is not None and self._started.poll() is None:
            if self._path.is_file():
                raise subprocess.TimeoutExpired("stage", timeout)
            time.sleep(0.05)
        return self._started.wait()


def test_what_a_stage_measured_before_its_limit_is_kept(folder, tmp_path, monkeypatch, capsys):
    write_stage(monkeypatch, tmp_path, RESULT + "time.sleep(600)")
    stage, start = stages.Stage("slow", "sleeps", 20.0), runner.process
    monkeypatch.setattr(
        runner,
        "process",
        lambda words, *rest: LimitOnceThereIs(start(words, *rest), Path(words[2])),
    )
    note = runner.read_note()
    assert not runner.one(stage, tmp_path, True, 100.0, environment_of(tmp_path), note)
    content = frame.read(tmp_path / "slow.json")
    assert content["tables"][0]["rows"] == [{"what": "a", "ms": 1.5}]
    assert content["ended"].startswith("ended after 28 s")
    assert content["machine"]["commit"] == "abc1234"
    assert "| a      | 1.50 |" in capsys.readouterr().out


def test_a_stage_that_fails_is_said_and_ends_no_other(folder, tmp_path, monkeypatch, capsys):
    write_stage(monkeypatch, tmp_path, "raise SystemExit('no luck')")
    stage = stages.Stage("bad", "fails", 60.0)
    assert not runner.one(stage, tmp_path, True, 100.0, environment_of(tmp_path), {})
    printed = capsys.readouterr().out
    assert "bad: ended with status 1" in printed
    assert "no luck" in printed


def test_without_time_left_a_stage_is_not_begun(folder, tmp_path, capsys):
    stage = stages.STAGES[0]
    assert not runner.one(stage, tmp_path, True, 15.0, environment_of(tmp_path), {})
    assert "environment: not-run, 15 s are left" in capsys.readouterr().out


def test_without_a_prepared_folder_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "FOLDER", tmp_path / "nothing")
    with pytest.raises(SystemExit, match=r"run `python scripts/gpu_check.py prepare` first"):
        runner.run(tmp_path / "out", True)


def test_without_a_gpu_only_a_stand_in_runs():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="sees no CUDA device; --stand-in"):
        place.find_place(stand_in=False)
