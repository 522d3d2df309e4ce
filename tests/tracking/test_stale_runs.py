import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner

from ocp_mamba.cli.runs import runs
from ocp_mamba.system.process import process_tags
from ocp_mamba.tracking.stale_runs import find_stale_runs

OLD = 1_600_000_000_000


@pytest.fixture
def project(tmp_path: Path) -> str:
    (tmp_path / "MLproject").write_text("name: ocp_mamba\n")
    return str(tmp_path)


def running(tags: dict[str, str], start_time: int | None = OLD) -> str:
    return mlflow.MlflowClient().create_run("0", start_time, tags).info.run_id


def of_project(source: str) -> dict[str, str]:
    return {"mlflow.source.type": "PROJECT", "mlflow.source.name": source}


def status(run_id: str) -> tuple[str, str | None]:
    run = mlflow.get_run(run_id)
    return run.info.status, run.data.tags.get("ended.reason")


def test_only_runs_with_nothing_behind_them_are_ended(store: str, project: str) -> None:
    gone = running({**process_tags(), "process.start_time": "1.0"}, start_time=None)
    never_started = running(of_project(project))
    from_git = running(of_project("https://host/ocp-mamba.git#sub"))
    spared = [
        running(process_tags()),
        running({**process_tags(), "process.start_time": "1.0", "process.host": "elsewhere"}),
        running(of_project(project), start_time=None),
        running(of_project("https://host/other.git")),
        running({"mlflow.source.type": "LOCAL"}),
    ]
    started = running(of_project(project))
    child = subprocess.Popen(
        [sys.executable, "-c", "input()"],
        stdin=subprocess.PIPE,
        env={**os.environ, "MLFLOW_RUN_ID": started},
    )
    try:
        assert {stale.run_id for stale in find_stale_runs(10)} == {gone, never_started, from_git}
        listed = CliRunner().invoke(runs, ["stale"])
        assert gone in listed.output
        assert status(gone) == ("RUNNING", None)
        ended = CliRunner().invoke(runs, ["stale", "--end"])
        assert ended.exit_code == 0, ended.output
    finally:
        child.communicate(b"\n")
    assert status(gone)[0] == "KILLED"
    assert "is gone" in (status(gone)[1] or "")
    assert status(never_started) == ("FAILED", "mlflow run made this run, but nothing started")
    assert all(status(run_id) == ("RUNNING", None) for run_id in [*spared, started])
    assert "no stale runs" not in ended.output
    assert {stale.run_id for stale in find_stale_runs(10)} == {started}


def test_mlflow_run_that_cannot_start_leaves_a_stale_run_that_is_found(
    store: str, tmp_path: Path
) -> None:
    (tmp_path / "MLproject").write_text(
        "name: ocp_mamba\nentry_points:\n  main:\n    parameters:\n      data: path\n"
        "    command: 'true {data}'\n"
    )
    command = [sys.executable, "-m", "mlflow", "run", ".", "--env-manager", "local"]
    done = subprocess.run([*command, "-P", "data=absent.npz"], cwd=tmp_path, capture_output=True)
    assert done.returncode != 0
    (stale,) = find_stale_runs(older_than_minutes=0)
    assert stale.status == "FAILED"
    assert find_stale_runs(older_than_minutes=10) == []


def test_no_stale_runs(store: str) -> None:
    done = CliRunner().invoke(runs, ["stale"])
    assert (done.exit_code, done.output) == (0, "no stale runs\n")
