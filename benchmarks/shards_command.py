"""The whole of ``ocp-mamba train`` as a process of its own, and the memory it took, by stage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
STAGES = {
    "Too large to be evaluated whole": "checking it",
    "Evaluating the baselines": "the baselines",
    "Training ": "training and validation",
}
"""What the command says as a stage begins."""
FIRST, LAST = "opening, drawing the sample", "last evaluation, report, registration"
INTERVAL = 0.2


@dataclass
class Stage:
    """Seconds, and the most GB resident: anonymous, pages of files, and both at one time."""

    name: str
    began: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    anonymous: float = 0.0
    files: float = 0.0
    both: float = 0.0

    def look(self, anonymous: float, files: float) -> None:
        """Take down a reading."""
        self.seconds = time.perf_counter() - self.began
        self.anonymous = max(self.anonymous, anonymous)
        self.files = max(self.files, files)
        self.both = max(self.both, anonymous + files)


def train(folder: Path, work: Path, *flags: str, stop_after: float = 0.0) -> list[Stage]:
    """Run the command to its end, or stop it some seconds into its training; returns the stages.

    Args:
        folder: the data.
        work: an empty folder for what it writes.
        flags: further ones.
        stop_after: seconds of training; 0 lets it end.
    """
    output = work / "model.pt"
    command = [sys.executable, "-u", "-m", "ocp_mamba", "train", "--data", str(folder.resolve())]
    command += ["--output", str(output), "--max-epochs", "1", *flags]
    env = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{work.resolve()}/mlflow.db",
        "PYTHONPATH": str(ROOT),
    }
    stages = [Stage(FIRST)]
    with subprocess.Popen(
        command, cwd=work, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        log = threading.Thread(target=_follow, args=(process, stages, work / "log.txt"))
        log.start()
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            stages[-1].look(*_resident(watched))
            if stages[-1].name == STAGES["Training "]:
                if output.exists():
                    stages.append(Stage(LAST))
                elif stop_after and stages[-1].seconds > stop_after:
                    process.send_signal(signal.SIGTERM)
                    stop_after = 0.0
            time.sleep(INTERVAL)
        log.join()
    ended = process.returncode
    if (ended != 0 and stages[-1].name == LAST) or ended not in (0, 128 + signal.SIGTERM):
        raise SystemExit(f"ocp-mamba train ended with {ended}; see {work / 'log.txt'}")
    return stages


def _follow(process: subprocess.Popen[str], stages: list[Stage], path: Path) -> None:
    assert process.stdout is not None
    with path.open("w") as file:
        for line in process.stdout:
            file.write(line)
            file.flush()
            for said, name in STAGES.items():
                if line.startswith(said):
                    stages.append(Stage(name))


def _resident(process: psutil.Process) -> tuple[float, float]:
    """GB of a process: anonymous, and pages of files, shared memory with them."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    sizes = {k: int(v.split()[0]) * 1024e-9 for k, _, v in (x.partition(":\t") for x in lines)
             if k.startswith("Rss")}  # fmt: skip
    return sizes.get("RssAnon", 0.0), sizes.get("RssFile", 0.0) + sizes.get("RssShmem", 0.0)
