import json
from pathlib import Path

import psutil
import pytest
from mlflow_run import mlflow_run

from ocp_mamba.errors import DataNotFoundError
from ocp_mamba.system import paths
from ocp_mamba.system.paths import PROJECT_FOLDER, resolve_file, resolve_output

PROBE = """
import json, pathlib, sys
from ocp_mamba.system.paths import caller_folder, resolve_file, resolve_output
found = {"caller": caller_folder(), "output": resolve_output("out/model.pt")}
found |= {name: resolve_file(name) for name in sys.argv[1:]}
pathlib.Path("found.json").write_text(json.dumps({k: str(v) for k, v in found.items()}))
"""

MLPROJECT = """
name: probe
entry_points:
  main:
    parameters: {data: string}
    command: python probe.py {data} both.npz project.npz
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_absolute_path_stays(here: Path) -> None:
    file = here / "a.npz"
    file.touch()
    assert resolve_file(file) == file
    assert resolve_output(here / "o.pt") == here / "o.pt"


def test_a_relative_path_leads_from_the_current_folder(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "a.npz").touch()
    assert resolve_file("sub/a.npz") == here / "sub" / "a.npz"
    assert resolve_file(Path("sub/../sub/a.npz")) == here / "sub" / "a.npz"
    assert resolve_output("sub/new/o.pt") == here / "sub" / "new" / "o.pt"


def test_the_home_folder_is_known(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "a.npz").touch()
    assert resolve_file("~/a.npz") == here / "a.npz"
    assert resolve_output("~/o.pt") == here / "o.pt"


def test_the_project_folder_is_the_last_resort(here: Path) -> None:
    assert resolve_file("pyproject.toml") == PROJECT_FOLDER / "pyproject.toml"
    (here / "pyproject.toml").touch()
    assert resolve_file("pyproject.toml") == here / "pyproject.toml"
    assert resolve_output("pyproject.toml") == here / "pyproject.toml"


def test_a_missing_file_names_the_places_and_the_way_out(here: Path) -> None:
    (here / "a.npz").mkdir()
    with pytest.raises(DataNotFoundError) as caught:
        resolve_file("a.npz")
    message = str(caught.value)
    assert f"{here / 'a.npz'} is a folder" in message
    assert f"{PROJECT_FOLDER / 'a.npz'} does not exist" in message
    assert "ocp-mamba data build" in message
    with pytest.raises(DataNotFoundError) as caught:
        resolve_file(here / "b.npz")
    assert str(caught.value).count("does not exist") == 1


def test_the_caller_is_above_mlflow_run(tmp_path: Path, store: str) -> None:
    """The project's folder and the caller's have files of one name: the caller's wins."""
    project, caller = tmp_path / "project", tmp_path / "caller"
    for folder, names in ((project, ("both", "project")), (caller, ("both", "caller"))):
        folder.mkdir()
        for name in names:
            (folder / f"{name}.npz").touch()
    (project / "probe.py").write_text(PROBE)
    (project / "MLproject").write_text(MLPROJECT)
    mlflow_run(caller, "../project", "-P", "data=caller.npz")
    assert json.loads((project / "found.json").read_text()) == {
        "caller": str(caller),
        "output": str(caller / "out" / "model.pt"),
        "caller.npz": str(caller / "caller.npz"),
        "both.npz": str(caller / "both.npz"),
        "project.npz": str(project / "project.npz"),
    }


def test_a_caller_that_has_gone_leaves_the_current_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = psutil.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(paths, "mlflow_run_ancestor", lambda: gone)
    assert paths.caller_folder() == here
