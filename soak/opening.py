"""A process that opens files that were damaged or forged, and says what came of each.

It reads one JSON object a line, with ``kind``, ``path`` and ``expected``, and answers with one. It
has little memory, and it watches what opening a file does: writing, running and connecting are
seen by an audit hook. What ends the process, or keeps it, is seen by the one who reads its answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ocp_mamba.errors import OcpMambaError

CPU_LIMIT_S = 20.0
PEAK_LIMIT_MIB = 1536
ADDRESS_SPACE_MIB = 6144
"""More address space for the process than what it has at its start, so that no file can take the
memory of the machine."""

FORBIDDEN = (
    "os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.remove",
    "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "shutil.", "subprocess.Popen", "socket.connect", "socket.bind", "pickle.find_class",
)  # fmt: skip
OUT_OF_MEMORY = ("MemoryError", "Unable to allocate", "not enough memory", "Cannot allocate memory")


class Watch:
    """An audit hook that remembers what a file must not do while it is opened."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and (
            (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
            or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        )
        if writes or event.startswith(FORBIDDEN):
            self.seen = self.seen or f"{event} {arguments!r:.200}"


def open_npz(path: Path) -> str:
    from ocp_mamba.data.load import load_dataset

    dataset = load_dataset(path)
    return f"{dataset.fingerprint} {json.dumps(dataset.meta, sort_keys=True)}"


def open_shards(path: Path) -> str:
    from ocp_mamba.data.shards.convert import verify_shards
    from ocp_mamba.data.shards.mapped import open_shards

    dataset = open_shards(path)
    verify_shards(dataset, path)
    return f"{dataset.fingerprint} {json.dumps(dataset.meta, sort_keys=True)}"


def open_pt(path: Path) -> str:
    import torch

    from ocp_mamba.baselines.checkpoint import load_predictor

    saved = load_predictor(path)
    tensors = [t.view(torch.uint8) if t.ndim else t for t in saved.model.state_dict().values()]
    content = b"".join(tensor.numpy().tobytes() for tensor in tensors)
    values = (saved.kind, saved.dataset_fingerprint, saved.encoder, saved.loop)
    return hashlib.sha256(content + repr(values).encode()).hexdigest()


def open_chains(path: Path) -> str:
    from ocp_mamba.data.build.chains import clean_chains, read_chains

    chains, _ = clean_chains(read_chains([path]))
    return hashlib.sha256(repr(chains).encode()).hexdigest()


def open_queue(path: Path) -> str:
    from ocp_mamba.tracking.offline_queue import read_queue

    return hashlib.sha256(repr(read_queue(path)).encode()).hexdigest()


def open_toml(path: Path) -> str:
    from ocp_mamba.cli.options import merged_settings
    from ocp_mamba.presets import BASE

    return repr(merged_settings({
        "config_file": path, "model_size": "small", "preset_name": BASE, "early_stopping": None,
    }))  # fmt: skip


def open_yaml(path: Path) -> str:
    from ocp_mamba.config import ModelConfig, TrainConfig
    from ocp_mamba.sweep.space import load_space

    space = load_space(path)
    space.check(ModelConfig(), TrainConfig())
    return repr(space.distributions)


OPENERS: dict[str, Callable[[Path], str]] = {
    "npz": open_npz, "legacy": open_npz, "shards": open_shards, "pt": open_pt,
    "chains": open_chains, "queue": open_queue, "toml": open_toml, "yaml": open_yaml,
}  # fmt: skip


def judged(kind: str, path: Path, expected: list[str], watch: Watch) -> tuple[str, str, str]:
    """Open a file; returns outcome, detail and what it holds.

    Args:
        kind: key of `OPENERS`.
        path: the file.
        expected: what it may hold if it loads; empty where any valid content is right.
        watch: sees what opening does.
    """
    opened, watch.seen = "", ""
    _forget_peak()
    before, began = _memory("VmRSS"), time.process_time()
    try:
        watch.on = True
        opened = OPENERS[kind](path)
        outcome, detail = "survived", ""
    except OcpMambaError as error:
        outcome, detail = "refused", str(error)
        if path.name not in detail:
            outcome, detail = "lost", f"the error does not name the file: {detail}"
        elif any(words in detail for words in OUT_OF_MEMORY):
            outcome, detail = "lost", f"asked for more memory than there is: {detail}"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        outcome = "lost"
        detail = f"{type(error).__name__}: {error!s:.150} ({where.filename}:{where.lineno})"
    finally:
        watch.on = False
    seconds, peak = time.process_time() - began, (_memory("VmHWM") - before) / 1024
    if expected and outcome == "survived" and opened not in expected:
        outcome, detail = "lost", "it loads, and holds something else than was written"
    if watch.seen:
        outcome, detail = "lost", f"opening it did {watch.seen}"
    if seconds > CPU_LIMIT_S or peak > PEAK_LIMIT_MIB:
        outcome, detail = "lost", f"took {seconds:.1f} s and {peak:.0f} MiB; {detail}"
    return outcome, detail, opened


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # another system: memory is not watched
        return


def _memory(key: str) -> float:
    """A number of /proc/self/status in KiB, 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((float(line.split()[1]) for line in lines if line.startswith(f"{key}:")), 0.0)


def main() -> None:
    """Answer every line of the standard input."""
    watch = Watch()
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["kind"] == "limit":  # after the first files, when all libraries are loaded
            size = int((_memory("VmSize") / 1024 + ADDRESS_SPACE_MIB) * 2**20)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))
            outcome = detail = opened = ""
        else:
            path, expected = Path(asked["path"]), asked["expected"]
            outcome, detail, opened = judged(asked["kind"], path, expected, watch)
        answer = {"outcome": outcome, "detail": detail, "opened": opened}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
