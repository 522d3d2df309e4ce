"""The rules that keep the package readable, held by reading its imports.

A module stands on a floor. It imports from lower floors, or from its own room: modules of one floor
that share a room's name. A module that is not in the table fails the test: find it a place.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ocp_mamba"
MAX_LINES = 400

# floor: {room: modules}; "x.*" stands for the package x and all in it.
FLOORS: dict[int, dict[str, tuple[str, ...]]] = {
    0: {
        "allocator": ("allocator",),
        "config": ("config", "presets"),
        "lifecycle": ("lifecycle",),
        "metrics": ("directions", "metrics"),
        "offline queue": ("offline queue",),
        "ssm_ops": ("backend", "processor", "ssm_cpu", "ssm_cuda", "ssm_ops", "ssm_step"),
    },
    1: {
        "data": ("data.*", "decoders", "encoders"),
        "model": (
            "checkpoint",
            "conditioning",
            "memory head",
            "recall_cpu",
            "inference",
            "inference_fast",
            "mamba2",
            "products",
            "model",
            "quantize",
        ),
        "distributed": ("distributed",),
        "paths": ("paths",),
        "retrieval": ("retrieval",),
    },
    2: {
        "evaluating": (
            "baselines",
            "baselines_file",
            "baselines_trained",
            "echo",
            "evaluate",
            "gates",
            "probes",
            "yardstick",
        ),
        "train": (
            "train",
            "train_files",
            "alarms",
            "compiled",
            "negatives",
            "objective",
            "schedule",
        ),
    },
    3: {
        "report": (
            "report",
            "report_html",
            "compare",
            "page",
            "plots",
            "quality",
            "variants",
            "verdict",
        ),
        "serving": ("serving", "pyfunc_model"),
    },
    4: {
        "tracking": (
            "tracking",
            "tracking_compare",
            "tracking_dataset",
            "tracking_ops",
            "tracking_run",
            "tracking_store",
            "tracking_sweep",
            "tracking_zombies",
        )
    },
    5: {"registry": ("registry",)},
    6: {
        "job": (
            "job",
            "job_baselines",
            "job_evaluate",
            "job_open",
            "job_processes",
            "job_quality",
            "job_report",
            "job_trainable",
            "job_variants",
        )
    },
    7: {
        "sweep": (
            "sweep",
            "sweep_job",
            "sweep_report",
            "sweep_space",
            "sweep_store",
            "sweep_worker",
        )
    },
    8: {
        "cli": (
            "__main__",
            "cli",
            "cli_compare",
            "cli_data",
            "cli_quality",
            "cli_runs",
            "cli_sweep",
            "cli_variants",
        )
    },
}

# An outside library is spoken to from these modules alone.
HOMES: dict[str, tuple[str, ...]] = {
    "causal_conv1d": ("ssm_cuda",),
    "click": FLOORS[8]["cli"],
    "faiss": ("retrieval",),
    "mamba_ssm": ("ssm_cuda",),
    "matplotlib": ("plots",),
    "mlflow": (*FLOORS[3]["serving"], *FLOORS[4]["tracking"], "registry"),
    "optuna": FLOORS[7]["sweep"],
    "psutil": ("lifecycle", "paths"),
    "requests": ("tracking_store",),
    "sentence_transformers": ("encoders",),
    "sqlalchemy": ("tracking_store", "sweep_store", "sweep_worker"),
    "torch.distributed": ("distributed",),
    "transformers": ("encoders",),
    "vec2text": ("decoders",),
    "yaml": ("sweep_space",),
}

# Optional, or slow to import: imported inside the function that uses them.
LAZY = {
    "causal_conv1d",
    "mamba_ssm",
    "matplotlib",
    "sentence_transformers",
    "transformers",
    "vec2text",
}

HEAVY = {"faiss", "mlflow", "torch", "pandas", "sklearn", "optuna", *LAZY}


def module_name(path: Path) -> str:
    """``data.file`` for ocp_mamba/data/file.py; the empty string for ocp_mamba/__init__.py."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
MODULES = sorted(name for name in FILES if name)


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def place(module: str) -> tuple[int, str] | None:
    for floor, rooms in FLOORS.items():
        for room, members in rooms.items():
            for member in members:
                whole = member.removesuffix(".*")
                if module == whole or (member != whole and module.startswith(f"{whole}.")):
                    return floor, room
    return None


def imports(module: str) -> Iterator[tuple[str, int]]:
    """Each imported dotted name with its line; ``from a import b`` gives a.b."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{FILES[module]}:{node.lineno}: write the absolute import"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def own_imports(module: str) -> Iterator[tuple[str, int]]:
    """Each imported module of the package; the package itself is left out."""
    for name, line in imports(module):
        parts = name.split(".")
        if parts[0] != PACKAGE:
            continue
        while parts[1:] and ".".join(parts[1:]) not in FILES:
            parts.pop()
        if parts[1:]:
            yield ".".join(parts[1:]), line


@functools.cache
def typing_only(module: str) -> frozenset[int]:
    """Line numbers that only the type checker reads."""
    return frozenset(
        line
        for node in ast.walk(tree(module))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    )


def import_time_statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run on import: not those in functions or ``if TYPE_CHECKING``."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from import_time_statements(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from import_time_statements(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from import_time_statements(handler.body)


def test_every_module_has_a_floor() -> None:
    homeless = [module for module in MODULES if place(module) is None]
    assert not homeless, f"give these a floor and a room in FLOORS: {homeless}"


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_or_stay_in_the_room(module: str) -> None:
    here = place(module)
    assert here is not None, f"{module} has no floor"
    wrong = []
    for target, line in own_imports(module):
        there = place(target)
        if there is None or (there[0] >= here[0] and there != here):
            wrong.append(f"{module} {here}, line {line}, imports {target} {there}")
    assert not wrong, wrong


def test_imports_have_no_cycle() -> None:
    graph = {
        module: {t for t, line in own_imports(module) if line not in typing_only(module)} - {module}
        for module in MODULES
    }
    assert list(TopologicalSorter(graph).static_order())


@pytest.mark.parametrize("library", HOMES)
def test_an_outside_library_has_one_home(library: str) -> None:
    users = {
        module
        for module in FILES
        for name, line in imports(module)
        if f"{name}.".startswith(f"{library}.") and line not in typing_only(module)
    }
    assert users <= set(HOMES[library]), f"{library} is also imported by {users}"


@pytest.mark.parametrize("module", MODULES)
def test_optional_and_slow_libraries_are_imported_when_used(module: str) -> None:
    found = []
    for node in import_time_statements(tree(module).body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(str(node.module))
    assert not {name.split(".")[0] for name in found} & LAZY


@pytest.mark.parametrize(
    "module",
    ["", "config", "offline queue", "paths", "cli", "cli_runs", "cli_compare", "cli_sweep"],
)
def test_importing_loads_nothing_heavy_and_writes_nothing(module: str, tmp_path: Path) -> None:
    name = f"{PACKAGE}.{module}".rstrip(".")
    code = f"import sys, {name}; print(*sorted({{m.split('.')[0] for m in sys.modules}}))"
    # -P keeps the working folder off the path, so only the installed package can be found.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & HEAVY
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", MODULES)
def test_what_is_public_has_a_docstring(module: str) -> None:
    def missing(owner: str, body: list[ast.stmt]) -> Iterator[str]:
        for node in body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_") or any(
                "overload" in ast.unparse(d) for d in node.decorator_list
            ):
                continue
            if ast.get_docstring(node) is None:
                yield f"{owner}.{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from missing(f"{owner}.{node.name}", node.body)

    assert ast.get_docstring(tree(module)), f"{module} says nothing about itself"
    assert not list(missing(module, tree(module).body))


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return tuple(p for name in listed.split("\0") if name and (p := ROOT / name).is_file())


def test_no_file_is_long() -> None:
    code = [p for p in tracked_files() if p.suffix in (".py", ".cpp", ".h")]
    lengths = {p: len(p.read_bytes().splitlines()) for p in code}
    too_long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not too_long, f"over {MAX_LINES} lines: split along what changes together: {too_long}"


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = "|".join(["work", "root", "home", "Users", "farm", "opt", "tmp"])
    hosts = "|".join([r"pypi\.org", r"pythonhosted\.org", r"download\.pytorch\.org"])
    pattern = re.compile(rf"(?<![\w.~$}}/])/(?:{folders})/\w|(?:{hosts})")
    found = []
    for path in tracked_files():
        if path.suffix in {".npz", ".png"} or path == Path(__file__):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{n}: {match[0]}"
            for n, line in enumerate(lines, 1)
            if (match := pattern.search(line))
        ]
    assert not found
