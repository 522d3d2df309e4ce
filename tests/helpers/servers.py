"""Real HTTP servers for tests: a tracking server, a scoring server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

START_SECONDS = 180


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A process that answers on ``url``; it can be killed and started again on the same port."""

    def __init__(
        self,
        module: list[str],
        folder: Path,
        port: int,
        *,
        python: str = sys.executable,
        **environment: str,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._command = [python, "-m", *module]
        self.folder = folder
        path = f"{Path(python).parent}{os.pathsep}{os.environ['PATH']}"  # uvicorn's
        self._environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **environment}
        self.log = folder / f"server-{port}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self.log.read_text()
            try:
                with urllib.request.urlopen(self.url + "/health", timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"no answer in {START_SECONDS} s: {self.log.read_text()}")

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def tracking_server(folder: Path) -> Server:
    port = free_port()
    command = ["mlflow", "server", "--port", str(port), "-w", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    return Server(command, folder, port, MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
                  MLFLOW_DISABLE_TELEMETRY="true")  # fmt: skip


def scoring_server(
    model: str, folder: Path, *, python: str = sys.executable, **environment: str
) -> Server:
    port = free_port()
    command = ["mlflow", "models", "serve", "-m", model, "--port", str(port)]
    command += ["--env-manager", "local"]
    return Server(command, folder, port, python=python, **environment)
