"""Makes the mutants of a module with mutmut, in a copy of the project, and keeps their results."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mutants_fork import KILLED, TIMED_OUT
from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "mutants"
NOTICED = frozenset({KILLED, TIMED_OUT, 2, 3, -6, -9, -11})
"""Exit codes of a mutant that a test noticed, a crash and a time-out included."""
COPIED = ("ocp_mamba", "tests", "pyproject.toml", "README.md", "ocp_training_9k.npz")


def copy_project() -> None:
    """Copy what the tests need, and make an empty store of MLflow once for all mutants."""
    import mlflow

    COPY.mkdir(exist_ok=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            unneeded = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, COPY / name, dirs_exist_ok=True, ignore=unneeded)
        else:
            shutil.copy2(ROOT / name, COPY / name)
    store = COPY / "empty_mlflow.db"
    if not store.exists():
        mlflow.MlflowClient(f"sqlite:///{store}").search_experiments()


class MutatedModule:
    """The mutants of one module, with what became of each."""

    def __init__(self, name: str, tests: Sequence[str]) -> None:
        """Read what is known of a module, such as ``ocp_mamba.data.split``.

        Args:
            name: of the module.
            tests: files of tests, and tests of them that are left out, after a ``!``.
        """
        self.name = name
        self.tests = [test for test in tests if not test.startswith("!")]
        self._left_out = [f"--deselect={test[1:]}" for test in tests if test.startswith("!")]
        self._path = Path(*name.split(".")).with_suffix(".py")
        self._file = COPY / f"{name}.json"
        self._known: dict[str, Any] = {"source": ""}
        self._known |= {part: {} for part in ("functions", "changes", "codes", "tests")}
        if self._file.exists():
            self._known = json.loads(self._file.read_text(encoding="utf-8"))

    @property
    def results(self) -> dict[str, tuple[str, int | None]]:
        """The change that each mutant is, and its exit code; None where it was not run."""
        codes = self._known["codes"]
        return {name: (change, codes.get(name)) for name, change in self._known["changes"].items()}

    def make(self) -> None:
        """Make the mutants again where the module has changed, and put them into the copy.

        A mutant that was noticed stays so while its function is the same.
        """
        source = (ROOT / self._path).read_text(encoding="utf-8")
        code = COPY / f"{self.name}.txt"
        if self._known["source"] != _digest(source):
            made = mutate_file_contents(str(self._path), source)
            code.write_text(made.code, encoding="utf-8")
            functions, before = made.hash_by_function_name, self._known["functions"]
            changes = _changes(self.name, made)
            same = {n for n in changes if functions[_function(n)] == before.get(_function(n))}
            codes = {n: c for n, c in self._known["codes"].items() if n in same and c in NOTICED}
            self._known |= {
                "source": _digest(source),
                "functions": dict(functions),
                "changes": changes,
                "codes": codes,
            }
            self._save()
        shutil.copyfile(code, COPY / self._path)

    @property
    def changes(self) -> dict[str, str]:
        """The change that each mutant is, in words."""
        return self._known["changes"]

    def run(self, is_judged: Callable[[str], bool]) -> None:
        """Run the tests on each mutant that none has noticed yet.

        Args:
            is_judged: whether no test can notice a change, so that trying it once is enough.
        """
        codes = self._known["codes"]
        todo = [
            name
            for name, change in self.changes.items()
            if codes.get(name) not in NOTICED and not (name in codes and is_judged(change))
        ]
        if not todo:
            return
        print(f"{self.name}: {len(todo)} mutants", flush=True)
        digests = {test: _digest((ROOT / test).read_text(encoding="utf-8")) for test in self.tests}
        kept = {f: self._known["tests"].get(f, {}) for f in self.tests}
        kept = {f: found for f, found in kept.items() if found.get("digest") == digests[f]}
        known = {test: rest for found in kept.values() for test, rest in found["tests"].items()}
        imports = self._known.setdefault("imports", [])
        job = {"module": self.name, "mutants": todo, "known": known, "imports": imports}
        for kind, name, *rest in _in_pytest(job, self.tests + self._left_out):
            if kind == "mutant":
                codes[name] = rest[0]
                continue
            if kind == "import":
                imports.append(name)
                continue
            file = name.split("::")[0]
            kept.setdefault(file, {"digest": digests[file], "tests": {}})["tests"][name] = rest
        self._known["tests"] = kept
        self._save()

    def _save(self) -> None:
        self._file.write_text(json.dumps(self._known, indent=1), encoding="utf-8")


def _in_pytest(job: Mapping[str, Any], chosen: Sequence[str]) -> list[list[Any]]:
    """Run `mutants_fork` on a job and return the lines that it wrote."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        file, results = folder / "job.json", folder / "results.jsonl"
        file.write_text(json.dumps(job), encoding="utf-8")
        results.touch()
        options = ["--rootdir=.", "-p", "no:cacheprovider", "-p", "mutants_fork", "-q", "--tb=no"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, f"--basetemp={folder / 'tests'}", *chosen],
            cwd=COPY,
            env=os.environ
            | {
                "EMPTY_MLFLOW_DB": str(COPY / "empty_mlflow.db"),
                "MLFLOW_DISABLE_TELEMETRY": "true",
                "MUTANTS_JOB": str(file),
                "MUTANTS_RESULTS": str(results),
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(COPY), str(ROOT / "scripts")]),
            },
            check=False,
        )
        failed = results.with_suffix(".failed")
        if failed.exists():
            sys.exit(f"{failed.read_text(encoding='utf-8')} fails without a mutant")
        if done.returncode not in (0, 5):
            print(f"pytest ended with {done.returncode}; what it has run is kept")
        return [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]


def _changes(module: str, made: MutatedFile) -> dict[str, str]:
    """Each mutant as a person reads it: its function, the lines as they are and as changed."""
    lines = made.code.splitlines()
    body = {
        name: [line.strip() for line in lines[span.start - 1 : span.end]]
        for name, span in made.line_span_by_function_name.items()
    }
    found = {}
    for name in made.mutant_names:
        function = name.partition("__mutmut_")[0]
        word = function.removeprefix("x").lstrip("_ǁ").replace("ǁ", ".")
        before, after = (
            [
                line.replace(f"def {made_as}(", f"def {word.split('.')[-1]}(")
                for line in body[made_as]
            ]
            for made_as in (f"{function}__mutmut_orig", name)
        )
        shared = 0
        while shared < min(len(before), len(after)) and before[shared] == after[shared]:
            shared += 1
        end = 0
        while end < min(len(before), len(after)) - shared and before[-1 - end] == after[-1 - end]:
            end += 1
        old, new = (" ".join(text[shared : len(text) - end]) for text in (before, after))
        found[f"{module}.{name}"] = f"{word}: {old}  →  {new}"
    return found


def _function(mutant: str) -> str:
    return mutant.rpartition(".")[2].partition("__mutmut_")[0]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
