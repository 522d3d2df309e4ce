import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import mlflow
import psutil
import pytest
from data_maker import make_dataset

from ocp_mamba.system import process
from ocp_mamba.system.process import (
    Killed,
    process_is_gone,
    process_tags,
    stop_signals,
    undisturbed,
)

MLPROJECT = """name: ocp_mamba_test
entry_points:
  main:
    command: "{python} {script} data.npz"
"""

TRAIN = """
import sys, time
from pathlib import Path
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.tracking import session

dataset = Dataset.load(sys.argv[1])
with session.track(dataset, sys.argv[1], output_dir="out", system_metrics=False) as run:
    Path("started").write_text(run.run_id)
    while True:
        time.sleep(0.05)
"""


def wait_for(condition: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def project(store: str, tmp_path: Path) -> Path:
    """A project whose training never ends by itself, in the store's folder."""
    make_dataset(20, 10).save(tmp_path / "data.npz")
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "MLproject").write_text(MLPROJECT.format(python=sys.executable, script="train.py"))
    return tmp_path


def run_of(project: Path) -> mlflow.entities.Run:
    return mlflow.get_run((project / "started").read_text())


def test_sigterm_ends_the_run_as_killed_with_143(project: Path) -> None:
    process = subprocess.Popen([sys.executable, "train.py", "data.npz"], cwd=project)
    wait_for((project / "started").exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    run = run_of(project)
    assert (run.info.status, run.data.tags["ended.reason"]) == ("KILLED", "SIGTERM")


@pytest.mark.slow
def test_training_ends_when_its_mlflow_run_is_killed(project: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [shutil.which("mlflow", path=path), "run", ".", "--env-manager", "local"]
    launcher = subprocess.Popen(
        command, cwd=project, env={**os.environ, "PATH": path}, start_new_session=True
    )
    wait_for((project / "started").exists)
    run = run_of(project)
    pid = int(run.data.tags["process.pid"])
    assert run.data.tags["mlflow.source.type"] == "PROJECT"
    launcher.terminate()
    launcher.wait(30)
    wait_for(lambda: not psutil.pid_exists(pid))
    run = run_of(project)
    assert run.info.status == "KILLED"
    assert run.data.tags["ended.reason"] == f"the mlflow run command (process {launcher.pid}) ended"


def test_signal_raises_killed_and_the_old_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def body() -> None:
        with stop_signals():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(Killed) as caught:
        body()
    assert (caught.value.reason, caught.value.code) == ("SIGTERM", 143)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_does_not_disturb_what_the_first_set_off() -> None:
    ended = []

    def body() -> None:
        with stop_signals():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            except Killed:
                os.kill(os.getpid(), signal.SIGTERM)  # before anything shields the run's end
                with undisturbed():
                    os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)  # the run is ended, the block is not
                ended.append("run")
                raise

    with pytest.raises(Killed):
        body()
    assert ended == ["run"]


def test_end_of_a_watched_process_raises_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "WATCH_SECONDS", 0.05)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def body() -> None:
        with stop_signals(psutil.Process(child.pid)):
            child.kill()
            time.sleep(20)

    with pytest.raises(Killed) as caught:
        body()
    child.wait()
    assert f"process {child.pid}" in caught.value.reason


def test_undisturbed_ignores_both_signals_and_restores_them() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with undisturbed():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    seen = []

    def body() -> None:
        with stop_signals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_a_process_is_known_by_host_id_and_start() -> None:
    mine = process_tags()
    assert process_is_gone(mine) is False
    assert process_is_gone({**mine, "process.host": "elsewhere"}) is None
    assert process_is_gone({"process.host": mine["process.host"]}) is None
    assert process_is_gone({**mine, "process.start_time": "1.0"}) is True  # the id was used again
    child = subprocess.Popen(["true"])
    child.wait()
    assert process_is_gone({**mine, "process.pid": str(child.pid)}) is True
