"""A team's server as a person starts it, over HTTP, with our own client and two users."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import psutil
import pytest
from command import run
from data_maker import make_dataset
from mlflow.exceptions import MlflowException
from postgres import NOT_FOUND, programs
from servers import free_port

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "server.py"
PASSWORDS = {"alice": "alice's password", "bob": "bob's password!"}
SECONDS = 240

pytestmark = pytest.mark.slow


def script(folder: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=SECONDS)


@pytest.fixture(scope="module")
def team() -> Iterator[tuple[Path, str]]:
    """The folder and the address of a running server with two users."""
    if programs() is None:
        pytest.skip(NOT_FOUND)
    folder = Path(tempfile.mkdtemp(prefix="ocp-team-"))  # PostgreSQL's user must get into it
    port = free_port()
    command = [sys.executable, str(SCRIPT), "--folder", str(folder), "start"]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"], stdout=said, stderr=said
        )
    try:
        deadline = time.monotonic() + SECONDS
        while not (folder / "url").exists():
            assert process.poll() is None, (folder / "said").read_text()
            assert time.monotonic() < deadline, (folder / "said").read_text()
            time.sleep(0.1)
        for name, password in PASSWORDS.items():
            done = script(folder, "user", name, typed=password + "\n")
            assert (done.returncode, done.stdout) == (0, f"server: added user {name}\n")
        yield folder, f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "server: ended" in (folder / "said").read_text()
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def become(team, store, monkeypatch: pytest.MonkeyPatch):
    """A function that makes the environment a user's, which is all that a client needs."""

    def to(name: str, password: str | None = None) -> mlflow.MlflowClient:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", team[1])
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password or PASSWORDS[name])
        mlflow.set_tracking_uri(team[1])
        return mlflow.MlflowClient()

    return to


def test_a_training_by_one_user_is_read_but_not_deleted_by_another(become, tmp_path):
    make_dataset(40, 20).save(tmp_path / "data.npz")
    words = ["train", "--data", "data.npz", "--output", "out/model.pt", "--model-size", "tiny"]
    words += ["--n-layers", "1", "--max-epochs", "1", "--experiment", "alices", "--quiet"]
    alice = become("alice")
    assert "registered   ocp-mamba-lvm version 1" in run(*words)
    experiment = alice.get_experiment_by_name("alices")

    bob = become("bob")
    found = bob.search_runs([experiment.experiment_id], "params.ran.processes = '1'")
    assert [r.info.status for r in found] == ["FINISHED"]
    (page,) = [a for a in bob.list_artifacts(found[0].info.run_id) if "report" in a.path][:1]
    assert page
    with pytest.raises(MlflowException, match="Permission denied"):
        bob.delete_experiment(experiment.experiment_id)
    with pytest.raises(MlflowException, match="Permission denied"):
        bob.set_registered_model_tag("ocp-mamba-lvm", "seen by", "bob")
    with pytest.raises(MlflowException, match="Permission denied"):
        bob.delete_run(found[0].info.run_id)
    refused = run(*words, code=2)  # nor does he train into her experiment
    assert "Error: tracking store http" in refused
    assert "Permission denied" in refused

    alice = become("alice")
    assert alice.get_experiment(experiment.experiment_id).lifecycle_stage == "active"
    alice.delete_experiment(experiment.experiment_id)


def test_a_wrong_password_is_said_and_the_password_is_not(become, tmp_path):
    make_dataset(40, 20).save(tmp_path / "data.npz")
    become("alice", "not alice's password")
    said = run("data", "check", "data.npz", code=2)
    assert "401" in said or "not authenticated" in said.lower()
    assert "not alice's password" not in said


def test_without_a_name_nothing_is_told(team):
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(
            f"{team[1]}/api/2.0/mlflow/experiments/get-by-name?experiment_name=x"
        )


def test_no_password_is_on_a_command_line_or_in_a_log(team):
    folder, _ = team
    kept = [p.read_text().strip() for p in (folder / "secrets").iterdir() if p.name != "pgpass"]
    assert len(kept) == 3
    assert all(p.stat().st_mode & 0o077 == 0 for p in (folder / "secrets").iterdir())
    texts = {p.name: p.read_text(errors="replace") for p in folder.iterdir() if p.is_file()}
    assert {"said", "mlflow.log", "postgres.log", "basic_auth.ini"} <= set(texts)
    texts |= {str(p.pid): " ".join(p.cmdline()) for p in psutil.process_iter() if p.is_running()}
    for secret in [*kept, *PASSWORDS.values()]:
        assert not [name for name, text in texts.items() if secret in text]


def test_what_the_server_refuses_is_said(team):
    folder, _ = team
    again = script(folder, "user", "alice", typed="another password\n")
    assert again.returncode == 1
    assert again.stderr == (
        "server: user alice: User (username=alice) already exists.; "
        "--change gives an existing user a new password\n"
    )
    short = script(folder, "user", "carol", typed="short\n")
    assert "at least 12 characters" in short.stderr
    changed = script(folder, "user", "bob", "--change", typed=PASSWORDS["bob"] + "\n")
    assert changed.stdout == "server: changed user bob\n"


def test_a_port_in_use_and_a_folder_without_a_server_are_said(team, tmp_path):
    port = team[1].rpartition(":")[2]
    busy = script(tmp_path, "start", "--port", port)
    assert (busy.returncode, busy.stdout) == (1, "")
    assert f"port {port} of 127.0.0.1" in busy.stderr
    assert "choose another --port" in busy.stderr
    absent = script(tmp_path, "user", "alice", typed="another password\n")
    assert f"no server runs in {tmp_path}; start it" in absent.stderr
    assert os.listdir(tmp_path) == []
