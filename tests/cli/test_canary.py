"""A password in the store's address: a whole training and a sweep, and where it must not be."""

from __future__ import annotations

import logging
from pathlib import Path

import mlflow
import pytest
from command import run
from servers import Server
from sweeps import Files

from ocp_mamba import redact as module

IN_ADDRESS, IN_VARIABLE, IN_QUERY = "canary-e7a10", "canary-5bd22", "canary-93f04"
CANARIES = [word.encode() for word in (IN_ADDRESS, IN_VARIABLE, IN_QUERY)]


def places(folder: Path) -> list[str]:
    """The files under a folder with a canary in their content or name."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [
        str(path)
        for path in files
        if any(word in path.read_bytes() + str(path).encode() for word in CANARIES)
    ]


def test_no_password_is_printed_logged_or_stored(
    store: str,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(logging, "_logRecordFactory", logging.getLogRecordFactory())
    monkeypatch.setattr("sys.excepthook", lambda *error: None)
    monkeypatch.setattr(module, "_remembered", set())
    address = server.url.replace("//", f"//alice:{IN_ADDRESS}@")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", IN_VARIABLE)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    files = Files.make(work)
    trained = run(
        "train", "--data", files.folder / "small.npz", "--config", files.folder / "tiny.toml",
        "--max-epochs", 2, "--output", work / "out" / "m.pt", "--run-name", f"by {address}",
        "--experiment", "canary", "--quiet",
    )  # fmt: skip
    swept = run(*files.new("--n-trials", 1, "--output", work / "sweeps", epochs=1))
    assert "registered   ocp-mamba-lvm version" in trained
    assert "best         trial 0" in swept

    down = "postgresql://alice:{}@127.0.0.1:1/x?application_name={}&sslpassword={}".format(
        IN_ADDRESS, "a", IN_QUERY
    )
    failed = run(*files.new("--storage", down), code=2)
    failed += run(
        "evaluate", "--model", f"models:/x?token={IN_QUERY}", "--data", work / "small.npz", code=2
    )
    failed += run("runs", "link", "--store", down, code=1)
    failed += run("compare", "x", "y", "--store", down, code=2)
    mlflow.set_tracking_uri(server.url)
    assert "***" in failed

    console = "".join([trained, swept, failed, *capfd.readouterr()])
    for word in CANARIES:
        assert word not in console.encode()
        assert word not in caplog.text.encode()
    assert places(work) == []
    assert places(server.folder) == []
    found = mlflow.search_runs(experiment_names=["canary"], output_format="list")
    assert [r.info.run_name for r in found if "by http" in r.info.run_name] == [
        f"by {server.url.replace('//', '//alice:***@')}"
    ]
