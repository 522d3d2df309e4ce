"""What SECURITY.md promises of the source: no pickles, no eval, no shells, no unsafe loads."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("ocp_mamba", "scripts")

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execve",
    "os.spawnv", "ssl._create_unverified_context", "runpy.run_path",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all",
    "tempfile.mktemp", "torch.hub.load", "torch.jit.load", "np.fromfile", "pd.read_pickle",
}  # fmt: skip
ALLOWED = {
    ("ocp_mamba/data/legacy/layouts.py", "np.load with allow_pickle"),  # --allow-pickle
    ("ocp_mamba/sweep/space.py", "yaml.load"),  # a subclass of SafeLoader
    ("scripts/server.py", "__import__"),  # are its own two libraries there?
    ("scripts/fetch_mpnet.py", "extractall"),  # a wheel that pip has fetched
}
"""What is used on purpose: file and finding. Each is said in SECURITY.md or beside the call."""


def findings(source: str) -> Iterator[str]:
    """What a file must not hold."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [str(node.module).split(".")[0]]
        else:
            names = []
        yield from (f"import {name}" for name in names if name in MODULES)
        if isinstance(node, ast.Call):
            yield from of_call(node)


def of_call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    given = {key: getattr(value, "value", value) for key, value in keywords.items()}
    if name in CALLS:
        yield name
    if given.get("shell", False) is not False:
        yield f"{name} with shell"
    if given.get("verify", True) is False:
        yield f"{name} without verification"
    if given.get("trust_remote_code", False) is not False:
        yield f"{name} with remote code"
    if name == "torch.load" and given.get("weights_only") is not True:
        yield "torch.load without weights_only"
    if name.startswith("np.") and given.get("allow_pickle", False) is not False:
        yield f"{name} with allow_pickle"
    if name.endswith(".extractall"):
        yield "extractall"


def test_the_source_holds_nothing_that_runs_what_it_reads():
    found = {
        (str(path.relative_to(ROOT)), finding)
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        for finding in findings(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval('1')",
        "exec(text)",
        "import os\nos.system('x')",
        "subprocess.run('x', shell=True)",
        "subprocess.Popen(x, shell=flag)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "np.lib.format.read_array(file, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.unsafe_load(text)",
        "requests.get(url, verify=False)",
        "archive.extractall(folder)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_each_of_these_is_found(source):
    assert list(findings(source))


@pytest.mark.parametrize(
    "source",
    [
        "import pickletools",
        "model.eval()",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=False)",
        "subprocess.run([x], check=False)",
        "yaml.safe_load(text)",
    ],
)
def test_none_of_these_is_found(source):
    assert not list(findings(source))


def test_the_yaml_loader_is_a_safe_one():
    import yaml

    from ocp_mamba.sweep.space import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)


def test_every_dependency_is_listed_with_its_purpose():
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    listed = set(re.findall(r"[\w-]+", text.split("## Dependencies")[1]))
    wanted = {re.split(r"[^\w-]", name)[0] for name in project["dependencies"]}
    assert wanted <= listed
