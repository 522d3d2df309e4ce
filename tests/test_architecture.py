"""The rules that keep the package readable.

The contracts in pyproject.toml (``lint-imports``) say which room may import which room and which
module may import which outside library. This file runs them and checks the rest: no circles
between modules, fast imports, docstrings, sizes, and the tree in the README.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "ocp_mamba"
MAX_LINES = 400
MAX_FILES_IN_A_FOLDER = 13
MAX_TOP_MODULES = 8

# Optional, or slow to import: imported inside the function that uses them.
LAZY = {
    "causal_conv1d",
    "mamba_ssm",
    "matplotlib",
    "obonet",
    "rdflib",
    "sentence_transformers",
    "transformers",
    "vec2text",
}
HEAVY = {"faiss", "mlflow", "optuna", "pandas", "scipy", "sklearn", "torch", *LAZY}

BINARY = {".npz", ".png", ".pt", ".zip"}


def module_name(path: Path) -> str:
    """``data.npz`` for ocp_mamba/data/npz.py; the empty string for ocp_mamba/__init__.py."""
    parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}
MODULES = sorted(name for name in FILES if name)


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


@functools.cache
def tracked_files() -> tuple[Path, ...]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return tuple(p for name in listed.split("\0") if name and (p := ROOT / name).is_file())


# --- imports ---------------------------------------------------------------------------------


def import_graph() -> dict[str, set[str]]:
    """Each module of the package with the modules that it imports, also for type checkers only."""
    graph = grimp.build_graph(PACKAGE, exclude_type_checking_imports=False, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, the first again at the end; empty without a circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_the_import_contracts_hold(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    status = lint_imports(cache_dir=None, no_cache=True)
    assert status == 0, capsys.readouterr().out


def test_no_modules_import_each_other() -> None:
    found = circle(import_graph())
    assert not found, " → ".join(reversed(found))


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == {"b", "c"}


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


@pytest.mark.parametrize("module", MODULES)
def test_optional_and_slow_libraries_are_imported_when_used(module: str) -> None:
    found = []
    for node in import_time_statements(parsed(module).body):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(str(node.module))
    assert not {name.split(".")[0] for name in found} & LAZY


def test_only_the_distributed_training_imports_torch_distributed() -> None:
    """A contract cannot say this: import-linter knows outside libraries by their first name."""
    users = set()
    for module in MODULES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            if any(f"{name}.".startswith("torch.distributed.") for name in names):
                users.add(module)
    assert users == {"training.distributed"}


@pytest.mark.parametrize(
    "module",
    ["", "config", "errors", "presets", "system.paths", "cli", "cli.runs", "cli.compare",
     "cli.sweep", "cli.train", "cli.ask", "cli.predict"],
)  # fmt: skip
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


# --- what a reader meets ---------------------------------------------------------------------


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

    assert ast.get_docstring(parsed(module)), f"{module} has no docstring"
    assert not list(missing(module, parsed(module).body))


def test_no_file_is_long() -> None:
    code = [p for p in tracked_files() if p.suffix in (".py", ".cpp", ".h")]
    lengths = {p: len(p.read_bytes().splitlines()) for p in code}
    too_long = {str(p.relative_to(ROOT)): n for p, n in lengths.items() if n > MAX_LINES}
    assert not too_long, f"over {MAX_LINES} lines: split along what changes together: {too_long}"


def test_no_folder_holds_many_files() -> None:
    code = [p for p in tracked_files() if p.suffix == ".py" and not p.stem.startswith("__")]
    counts = Counter(str(p.parent.relative_to(ROOT)) for p in code)
    crowded = {
        folder: count
        for folder, count in counts.items()
        if count > MAX_FILES_IN_A_FOLDER and folder.startswith(PACKAGE)
    }
    assert not crowded, f"over {MAX_FILES_IN_A_FOLDER} modules: make a room in it: {crowded}"


def test_few_modules_stand_outside_a_room() -> None:
    flat = {p.name for p in tracked_files() if p.parent == ROOT / PACKAGE and p.suffix == ".py"}
    assert len(flat) <= MAX_TOP_MODULES, f"move one into a room: {sorted(flat)}"


def test_no_file_names_a_machine_or_a_registry() -> None:
    folders = "|".join(["work", "root", "home", "Users", "farm", "opt", "tmp"])
    hosts = "|".join([r"pypi\.org", r"pythonhosted\.org", r"download\.pytorch\.org"])
    pattern = re.compile(rf"(?<![\w.~$}}/])/(?:{folders})/\w|(?:{hosts})")
    found = []
    for path in tracked_files():
        if path.suffix in BINARY or path == Path(__file__):
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        found += [
            f"{path.relative_to(ROOT)}:{n}: {match[0]}"
            for n, line in enumerate(lines, 1)
            if (match := pattern.search(line))
        ]
    assert not found


# --- the tree in the README ------------------------------------------------------------------

TREE = re.compile(r"<!-- tree: begin -->\s*```\w*\n(.*?)```\s*<!-- tree: end -->", re.DOTALL)
BRANCH = re.compile(r"^(?P<indent>[\s│|]*)(?:[├└]──|\|--|`--)\s*(?P<name>[^\s#]+)")


def folders_of_tree(block: str) -> list[str]:
    """The folder paths of a block in the style of ``tree -d``, comments left out.

    The first line is the root. A line's depth is how far its branch is indented, compared with the
    lines above it, so the width of one level does not matter.
    """
    lines = [line for line in block.splitlines() if line.strip(" │|")]
    root = lines[0].split("#")[0].strip().rstrip("/")
    paths, open_folders = [root], [(-1, root)]
    for line in lines[1:]:
        match = BRANCH.match(line)
        assert match, f"no branch of a tree: {line!r}"
        indent = len(match["indent"])
        while open_folders[-1][0] >= indent:
            open_folders.pop()
        path = f"{open_folders[-1][1]}/{match['name'].rstrip('/')}"
        open_folders.append((indent, path))
        paths.append(path)
    return paths


def test_the_tree_of_the_readme_is_what_is_there() -> None:
    match = TREE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert match, "README.md has no block between <!-- tree: begin --> and <!-- tree: end -->"
    shown = folders_of_tree(match[1])
    there = {
        str(folder)
        for path in tracked_files()
        for folder in path.relative_to(ROOT).parents
        if folder.parts[:1] == (PACKAGE,)
    }
    assert len(shown) == len(set(shown)), "a folder is listed twice"
    assert set(shown) == there
    uncommented = [line for line in match[1].splitlines() if "──" in line and "#" not in line]
    assert not uncommented, "each folder needs a comment"


@pytest.mark.parametrize(
    "block",
    [
        "a\n├── b  # one\n│   ├── c  # two\n│   └── d\n└── e  # three\n    └── f\n",
        "a/  # root\n├── b/\n│\xa0\xa0 ├── c/\n│\xa0\xa0 └── d/\n└── e/\n    └── f/\n",
        "a\n|-- b\n|   |-- c\n|   `-- d\n`-- e\n    `-- f\n",
        "a\n├── b\n│ ├── c\n│ └── d\n│\n└── e\n  └── f\n",
    ],
)
def test_a_tree_is_read(block: str) -> None:
    assert folders_of_tree(block) == ["a", "a/b", "a/b/c", "a/b/d", "a/e", "a/e/f"]
