import os
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner
from filelock import FileLock

from ocp_mamba.cli.runs import runs
from ocp_mamba.system.process import process_tags
from ocp_mamba.tracking.resumed import blank_run, output_tag
from ocp_mamba.tracking.stale_runs import end_killed_runs, find_stale_runs
from ocp_mamba.training.run_folder import claim

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


def test_a_start_ends_what_killed_trainings_left_in_its_folder(store: str, tmp_path: Path) -> None:
    """A run counts by its output's folder, by its process, and by the lock of its own folder."""
    output = tmp_path / "out" / "model.pt"
    output.parent.mkdir()
    gone = {**process_tags(), "process.start_time": "1.0"}
    here, elsewhere = output_tag(output), output_tag(tmp_path / "other" / "model.pt")
    blank = running({**gone, **here})
    killed, locked, spared = (running({**gone, **here}) for _ in range(3))
    client = mlflow.MlflowClient()
    for run_id in (killed, locked, spared):
        client.log_param(run_id, "lr", 1)
        (output.parent / run_id).mkdir()
    left = [locked, spared, running({**gone, **elsewhere}), running({**process_tags(), **here})]
    unknown = running({**gone, **here})
    client.log_param(unknown, "lr", 1)  # it has no folder here: of another machine of that name
    with FileLock(output.parent / locked / "run.lock"):
        ended = end_killed_runs(output, spared)
    assert {run.run_id for run in ended} == {blank, killed}
    assert all(status(run_id)[0] == "KILLED" for run_id in (blank, killed))
    assert all(status(run_id) == ("RUNNING", None) for run_id in [*left, unknown])
    assert blank_run(output) is None
    again = running({**gone, **here})
    assert blank_run(output) == again


def test_files_that_kills_left_are_listed_and_removed(store: str, tmp_path: Path) -> None:
    asked = {"train": {"lr": 1}}
    with claim(tmp_path / "results" / "m.pt", asked, resume=False) as mine:
        folder = mine.make("begun", dataset="d", store="s").path
    part = folder / ".m.pt.0.part"
    part.touch()
    words = ["stale", "--outputs", str(tmp_path / "results")]
    listed = CliRunner().invoke(runs, words).output
    assert f"left by a killed training: {part}" in listed
    assert f"interrupted: {folder}; `train --output {tmp_path / 'results' / 'm.pt'}" in listed
    assert part.exists()
    assert f"removed {part}" in CliRunner().invoke(runs, [*words, "--end"]).output
    assert not part.exists()


def test_no_stale_runs(store: str) -> None:
    done = CliRunner().invoke(runs, ["stale"])
    assert (done.exit_code, done.output) == (0, "no stale runs\n")
