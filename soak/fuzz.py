"""The fuzz campaign: thousands of damaged and forged files, each opened in a watched process.

``python -m soak.fuzz KIND NUMBER FOLDER`` writes one of them again.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from pathlib import Path
from random import Random
from typing import Any

from soak.forgeries import damage_folder, forge
from soak.mutations import damaged
from soak.result import Log, Outcome, Result
from soak.seeds import make_seeds

FILES = {
    "npz": 2500, "legacy": 1000, "shards": 1200, "pt": 2500,
    "chains": 1000, "queue": 800, "toml": 600, "yaml": 400,
}  # fmt: skip
"""Files of each kind, 10,000 in all."""

QUICK_SHARE = 30
"""The short form has one of so many files."""

SEED = 13
DAMAGED_SHARE = 0.4
CHECKED = ("npz", "shards", "pt")
"""Kinds with a digest or a fingerprint: what was damaged must not load as something else."""

NAMES = {
    "npz": "dataset file", "legacy": "older npz", "shards": "folder of shards",
    "pt": ".pt", "chains": "chain file", "queue": "offline queue", "toml": "TOML settings",
    "yaml": "YAML search space",
}  # fmt: skip
ANSWER_S, START_S = 120.0, 300.0
"""Seconds until a process that does not answer counts as one that hangs."""


def run(quick: bool, log: Log) -> list[Result]:
    """Make and open all files; returns a result for each."""
    # zipfile and torch warn of what is forged here
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(action="ignore"):
        folder = Path(scratch)
        seeds = make_seeds(folder)
        opener = Opener(folder)
        try:
            results, expected = _open_seeds(seeds, opener)
            opener.ask("limit", folder, [])
            for kind, count in FILES.items():
                found = _campaign(kind, count // (QUICK_SHARE if quick else 1), folder,
                                  seeds, expected, opener)  # fmt: skip
                lost = [r for r in found if r.outcome == "lost"]
                log(f"{NAMES[kind]}: {len(found):,} files, lost {len(lost)}")
                for result in lost[:5]:
                    log(f"lost: {result.case}: {result.detail}")
                results += found
        finally:
            opener.end()
    return results


def _open_seeds(seeds: dict[str, list[Path]], opener: Opener) -> tuple[list[Result], list[str]]:
    """Open the whole files; returns the results, and what the files hold.

    Each is opened twice: the first time loads libraries, which may write caches.
    """
    results, expected = [], []
    for kind, paths in seeds.items():
        for path in paths:
            opener.ask(kind, path, [])
        answers = [opener.ask(kind, path, []) for path in paths]
        expected += [answer["opened"] for answer in answers]
        for path, answer in zip(paths, answers, strict=True):
            outcome: Outcome = "survived" if answer["outcome"] == "survived" else "lost"
            results.append(_result(kind, "whole", outcome, f"{path.name}: {answer['detail']}"))
    return results, expected


def _campaign(
    kind: str,
    count: int,
    folder: Path,
    seeds: dict[str, list[Path]],
    expected: list[str],
    opener: Opener,
) -> list[Result]:
    results = []
    for number in range(count):
        seed, path, how = make(kind, number, folder, seeds)
        # a file of an older format has no digest, and what was forged has a right one
        checked = how == "damaged" and kind in CHECKED and seed.name != "older.pt"
        wanted = expected if checked else []
        answer = opener.ask(kind, path, wanted)
        detail = f"file {number}: {answer['detail']}".replace(str(folder), "")
        results.append(_result(kind, how, answer["outcome"], detail))
        _remove(path)
    return results


def _result(kind: str, how: str, outcome: Outcome, detail: str) -> Result:
    return Result("fuzz", f"{NAMES[kind]}, {how}", outcome, detail)


def make(
    kind: str, number: int, folder: Path, seeds: dict[str, list[Path]]
) -> tuple[Path, Path, str]:
    """Write a file of the campaign; returns the whole file, what became of it, and how."""
    rng = Random(f"{SEED} {kind} {number}")
    seed = rng.choice(seeds[kind])
    path = folder / f"{kind}-{number}{seed.suffix}"
    if rng.random() >= DAMAGED_SHARE:
        forge(rng, kind, seed, path)
        return seed, path, "forged"
    other_kind = rng.choice((kind, kind, *seeds))
    other = rng.choice(seeds[other_kind])
    other_content = (other / "meta.json" if other.is_dir() else other).read_bytes()
    if seed.is_dir():
        damage_folder(rng, seed, path, other_content)
    else:
        path.write_bytes(damaged(rng, seed.read_bytes(), other_content))
    return seed, path, "damaged"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class Opener:
    """A process of `soak.opening`, made again when a file has ended or kept it."""

    def __init__(self, folder: Path) -> None:
        """Start it in a folder of its own, where whatever a file writes is found."""
        self._inside = folder / "inside"
        self._inside.mkdir()
        self._start()

    def _start(self) -> None:
        root = Path(__file__).resolve().parents[1]
        environment = os.environ | {
            "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore", "TMPDIR": str(self._inside),
        }  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, "-m", "soak.opening"],
            cwd=self._inside,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(
            target=self._read, args=(self._process, self._answers), daemon=True
        ).start()
        self._wait_s = START_S

    @staticmethod
    def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            answers.put(line)
        answers.put("")

    def ask(self, kind: str, path: Path, expected: list[str]) -> dict[str, Any]:
        """Let the process open a file; returns its answer, or that it was ended or kept."""
        assert self._process.stdin is not None
        asked = {"kind": kind, "path": str(path), "expected": expected}
        try:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._wait_s)
        except queue.Empty:
            return self._again(f"no answer in {self._wait_s:.0f} s")
        except BrokenPipeError:
            line = ""
        if not line:
            return self._again(f"the process ended with {self._process.wait()}")
        self._wait_s = ANSWER_S
        answer: dict[str, Any] = json.loads(line)
        if written := [item.name for item in self._inside.iterdir()]:
            answer |= {"outcome": "lost", "detail": f"opening it wrote {written}"}
            for item in self._inside.iterdir():
                _remove(item)
        return answer

    def _again(self, what: str) -> dict[str, Any]:
        self.end()
        self._start()
        return {"outcome": "lost", "detail": what, "opened": ""}

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def main() -> None:
    """Write the file that the command line names."""
    kind, number, target = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    target.mkdir(parents=True, exist_ok=True)
    seeds = make_seeds(target)
    print(*make(kind, number, target, seeds))


if __name__ == "__main__":
    main()
