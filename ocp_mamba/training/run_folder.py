"""The folder of one training run, beside the shared output: ``<output's folder>/<run id>``.

A run writes nothing outside its folder before its end, so that any number of runs may share an
output. ``run.json`` says what the run was started with, and ``run.lock`` is locked while a process
works on it: a kill of any kind unlocks it. Imports nothing that takes long, so that the command
line can refuse what cannot be before it loads anything else.
"""

from __future__ import annotations

import glob
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ocp_mamba.errors import EndedError, OutputError, ResumeError, first_line
from ocp_mamba.system.disk import require_writable
from ocp_mamba.system.files import atomic_write, partial_files
from ocp_mamba.system.process import PID_TAG, process_tags
from ocp_mamba.training.asked import differences

RECORD, LOCK = "run.json", "run.lock"
RECORD_VERSION = 1
PUBLISH_SECONDS = 600.0
"""Longest wait for another run that writes the shared output at the same time."""


def resume_path(output: Path) -> Path:
    """Return the path of the state from which a training that writes ``output`` is resumed."""
    return output.with_name(f"{output.stem}.last{output.suffix}")


@dataclass(frozen=True)
class _Found:
    """The folder of a run that has not ended, and its record."""

    path: Path
    record: Mapping[str, Any]


class RunFolder:
    """The folder of one run, which this process has locked."""

    def __init__(self, path: Path, output: Path, lock: FileLock, record: dict[str, Any]) -> None:
        """Wrap a locked folder; `claim` finds one, and `Claim.make` makes one."""
        self.path, self.output = path, output
        self.record = record
        self._lock = lock

    @property
    def best(self) -> Path:
        """The best epoch's ``.pt``, under the name of the shared output."""
        return self.path / self.output.name

    @property
    def state(self) -> Path:
        """The state to resume from."""
        return resume_path(self.best)

    @property
    def run_id(self) -> str:
        """The id of the tracked run."""
        return str(self.record["run_id"])

    def note(self, **values: Any) -> None:
        """Change entries of the record, on the disk too."""
        self.record |= values
        try:
            with atomic_write(self.path / RECORD) as file:
                file.write(json.dumps(self.record, indent=1).encode())
        except OSError as error:
            raise OutputError(f"cannot write {self.path / RECORD}: {first_line(error)}") from error

    def require_dataset(self, fingerprint: str, data: Path) -> None:
        """Refuse to go on with other data.

        Raises:
            ResumeError: names both.
        """
        if self.record["dataset"] != fingerprint:
            raise ResumeError(
                f"cannot resume {self.path}: it was begun on dataset "
                f"{self.record['dataset'][:12]}, {data} is {fingerprint[:12]}; give that dataset, "
                "or leave --resume out to start a new run"
            )

    def publish(self) -> None:
        """Copy the best epoch's ``.pt``, and trained baselines', to the shared output, each whole.

        Does nothing where an earlier process of this run has done it: another run may have written
        the output since.

        Raises:
            OutputError: the output cannot be written; the run's own files stay where they are.
        """
        if self.record.get("published"):
            return
        target = self.output.parent
        try:
            with FileLock(_hidden(self.output, "lock"), timeout=PUBLISH_SECONDS):
                others = self.path.glob(f"{glob.escape(self.output.stem)}.*{self.output.suffix}")
                for file in [self.best, *sorted(set(others) - {self.best, self.state})]:
                    _remove(partial_files(target, file.name))
                    with file.open("rb") as source, atomic_write(target / file.name) as copy:
                        shutil.copyfileobj(source, copy)
        except (OSError, Timeout) as error:
            raise OutputError(
                f"cannot write {self.output}: {first_line(error)}; the model is in {self.best}"
            ) from error
        self.note(published=True)

    def finish(self) -> None:
        """Mark the run as ended, and remove what only a resumption needs."""
        self.note(ended=True)
        _remove(_left_over(self.path, self.record))

    def way_on(self) -> str:
        """Say how to go on after this process has ended early."""
        if self.record.get("ended"):
            return f"the run has ended; its files are in {self.path}"
        what = "the last state" if self.state.exists() else "no state yet, only the run"
        return f"{what} is in {self.path}: go on with the same command and --resume"

    def release(self) -> None:
        """Let other processes go on with this run."""
        self._lock.release()


class Claim:
    """The right of this process to train for an output: anew, or where an earlier one stopped."""

    def __init__(
        self, output: Path, asked: Mapping[str, Any], folder: RunFolder | None, resume: bool
    ) -> None:
        """Keep what was found; see `claim`."""
        self.output, self.asked = output, asked
        self.folder = folder
        self.done = _last_done(output, asked) if resume and folder is None else None

    def make(self, run_id: str, **more: Any) -> RunFolder:
        """Return the folder of a run, made and locked where it is not this claim's already.

        Args:
            run_id: of the tracked run, which names the folder.
            more: further entries of the record.

        Raises:
            OutputError: it cannot be written.
            ResumeError: another process works on it.
        """
        if self.folder is not None:
            self.folder.note(process=process_tags())
            return self.folder
        path = self.output.parent / run_id
        try:
            path.mkdir(exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make folder {path}: {first_line(error)}") from error
        lock = _try_lock(path)
        if lock is None:
            raise ResumeError(f"another process works on run {run_id}, in {path}")
        record = {
            "version": RECORD_VERSION,
            "run_id": run_id,
            "output": self.output.name,
            "asked": dict(self.asked),
            "started": time.time(),
            "process": process_tags(),
            **more,
        }
        self.folder = RunFolder(path, self.output, lock, record)
        self.folder.note()
        return self.folder

    @property
    def made(self) -> RunFolder:
        """The folder, which `make` has made."""
        assert self.folder is not None
        return self.folder

    def require_not_done(self, fingerprint: str) -> None:
        """Refuse to train what the latest training of this output, to be resumed, has trained.

        Raises:
            EndedError: it had these settings and these data, and has ended.
        """
        if self.done is not None and self.done.record["dataset"] == fingerprint:
            raise EndedError(
                f"This training has ended: run {self.done.record['run_id']}, in {self.done.path}. "
                "Nothing is left to go on with; leave --resume out to train again"
            )

    def release(self) -> None:
        """Let other processes go on with the run."""
        if self.folder is not None:
            self.folder.release()


@contextmanager
def claim(output: Path, asked: Mapping[str, Any], *, resume: bool) -> Iterator[Claim]:
    """Check an output, and with ``resume`` find and lock the interrupted run to go on with.

    Of several interrupted runs with these settings the latest is taken.

    Args:
        output: the shared ``.pt``.
        asked: the settings, by name; a value may be settings again.
        resume: go on with an interrupted run, if there is one.

    Raises:
        OutputError: see `require_writable`.
        ResumeError: another process resumes this output or works on that run, or all interrupted
            runs of this output have other settings.
    """
    require_writable(output)
    asked = json.loads(json.dumps(asked))
    with ExitStack() as locks:
        if resume:
            mutex = FileLock(_hidden(output, "resume.lock"))
            try:
                mutex.acquire(timeout=0)
            except Timeout:
                raise ResumeError(
                    f"another process trains {output} with --resume; wait for its end, or leave "
                    "--resume out to start a run beside it"
                ) from None
            locks.callback(mutex.release)
        found = Claim(output, asked, _interrupted(output, asked) if resume else None, resume)
        locks.callback(found.release)
        yield found


def resumable(output: Path, asked: Mapping[str, Any]) -> Path | None:
    """Return the folder of the latest interrupted run with these settings, or None."""
    asked = json.loads(json.dumps(asked))
    left = _left(output)
    return next((f.path for f in left if not _changed(f, asked) and is_free(f.path)), None)


def _interrupted(output: Path, asked: Mapping[str, Any]) -> RunFolder | None:
    """The latest interrupted run of an output, locked; None where there is none."""
    refusal = ""
    for found in _left(output):
        changed = _changed(found, asked)
        lock = _try_lock(found.path)
        if lock is None and not changed:
            process = found.record.get("process", {}).get(PID_TAG, "unknown")
            raise ResumeError(
                f"cannot resume {found.path}: process {process} works on it; wait for its end, or "
                "leave --resume out to start a run beside it"
            )
        if lock is None:
            continue
        record = _read(found.path)
        if record is not None and not _is_done(found.path, record):
            if not changed:
                _remove(partial_files(found.path))
                return RunFolder(found.path, output, lock, record)
            refusal = refusal or f"cannot resume {found.path}: {changed}"
        lock.release()
    if refusal:
        raise ResumeError(
            f"{refusal}. Give the settings that it was begun with; or leave --resume out, or "
            "remove that folder, to start a new run"
        )
    return None


def _last_done(output: Path, asked: Mapping[str, Any]) -> _Found | None:
    """The latest run of an output with these settings, if it has ended and the output is there."""
    last = next((f for f in _all(output) if not _changed(f, asked)), None)
    return last if last and _is_done(last.path, last.record) and output.exists() else None


def _left(output: Path) -> list[_Found]:
    """The runs of an output that have not ended, the latest first."""
    return [f for f in _all(output) if not _is_done(f.path, f.record)]


def _all(output: Path) -> list[_Found]:
    """The runs of an output, the latest first."""
    found = [
        _Found(file.parent, record)
        for file in output.parent.glob(f"*/{RECORD}")
        if (record := _read(file.parent)) is not None
    ]
    found = [f for f in found if f.record["output"] == output.name]
    return sorted(found, key=lambda f: float(f.record["started"]), reverse=True)


def _is_done(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether a run has ended; one that was killed in its very last moment still has its state."""
    return bool(record.get("ended")) and not resume_path(path / str(record["output"])).exists()


def _changed(found: _Found, asked: Mapping[str, Any]) -> str:
    return differences(found.record["asked"], asked)


def clean(folder: Path, *, remove: bool = True) -> list[Path]:
    """Remove what killed trainings left in their folders under ``folder``; returns the paths.

    Temporary files go always, states and single epochs' models only where the run has ended, and a
    folder in which nothing was begun goes whole. What a living process works on, and what an
    offline queue still needs, stays.

    Args:
        folder: the folder of shared outputs.
        remove: False to return the paths only.
    """
    found = []
    for file in sorted(folder.glob(f"*/{LOCK}")):
        lock = _try_lock(file.parent)
        if lock is None:
            continue
        try:
            found += (left := _left_over(file.parent, _read(file.parent)))
            if remove:
                _remove(left)
        finally:
            lock.release()
    return found


def interrupted(folder: Path) -> list[tuple[Path, str]]:
    """Return the folder and the output's name of each run under ``folder`` that may be resumed."""
    found = []
    for file in sorted(folder.glob(f"*/{RECORD}")):
        record = _read(file.parent)
        if record is None or _is_done(file.parent, record):
            continue
        if is_free(file.parent):
            found.append((file.parent, str(record["output"])))
    return found


def _left_over(path: Path, record: Mapping[str, Any] | None) -> list[Path]:
    """What nobody needs in a folder that this process has locked, or the folder itself."""
    left = partial_files(path)
    if record is None:
        return [path] if {file.name for file in path.iterdir()} == {LOCK} else left
    if record.get("ended"):
        left.append(resume_path(path / str(record["output"])))
        if not list(path.glob("*.queue.jsonl")):
            left += sorted(path.glob("*.epoch-*.pt"))
    return [file for file in left if file.exists()]


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The record of a run's folder; None for a file that is none of ours."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    wanted = {"run_id", "output", "asked", "started", "dataset"}
    return record if isinstance(record, dict) and wanted <= set(record) else None


def _try_lock(path: Path) -> FileLock | None:
    """The lock of a run's folder, or None where another process has it."""
    lock = FileLock(path / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    return lock


def is_free(path: Path) -> bool:
    """Return whether no process works on a run's folder."""
    lock = _try_lock(path)
    if lock is not None:
        lock.release()
    return lock is not None


def _hidden(output: Path, ending: str) -> Path:
    return output.with_name(f".{output.name}.{ending}")
