"""The scripts behind `make install`, and what a wheel of the package holds."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = script("install")
link = script("link_mlflow_env")


# --- the pin of torch ------------------------------------------------------------------------


def test_the_pin_of_torch_is_that_of_the_constraints(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("# tested\ntorchvision==9\ntorch==2.13.0 ; python_version > '3'\n")
    assert install.torch_pin(constraints) == "2.13.0"
    assert f"torch=={install.torch_pin(ROOT / 'constraints.txt')}\n" in (
        ROOT / "constraints.txt"
    ).read_text(encoding="utf-8")


def test_no_pin_of_torch_is_an_error(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("numpy==2.4.6\ntorch>=2.11\n")
    with pytest.raises(install.InstallError, match="torch==VERSION"):
        install.torch_pin(constraints)


# --- the link for `mlflow run .` -------------------------------------------------------------


@pytest.fixture
def activate(tmp_path: Path) -> Path:
    """The ``bin/activate`` of an environment."""
    path = tmp_path / "checkout" / ".venv" / "bin" / "activate"
    path.parent.mkdir(parents=True)
    path.write_text("# activate\n")
    return path


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of MLflow's environments, not made yet."""
    path = tmp_path / "environments"
    monkeypatch.setenv("MLFLOW_ENV_ROOT", str(path))
    return path


def named(monkeypatch: pytest.MonkeyPatch, folder: Path | None) -> Path | None:
    """Let MLflow's folder for the project be this one."""
    monkeypatch.setattr(link, "mlflow_folder", lambda project: folder)
    return folder


def test_mlflow_looks_where_the_link_is_laid(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against MLflow itself: these are the private functions that we use of it."""
    from mlflow.projects.backend import local
    from mlflow.utils.environment import _PythonEnv

    folder = link.mlflow_folder(ROOT)
    environment = _PythonEnv.from_yaml(ROOT / "python_env.yaml")
    assert folder == root / local._get_virtualenv_name(environment, ROOT)
    assert folder.parent == link.default_root()
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", "")  # nothing could make an environment
    command = local._create_virtualenv(ROOT, environment, folder, env_manager="virtualenv")
    assert command == f"source {folder / 'bin' / 'activate'}"


def test_the_default_root_is_that_of_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ENV_ROOT", raising=False)
    from mlflow.utils.virtualenv import _get_mlflow_virtualenv_root

    assert str(link.default_root()) == _get_mlflow_virtualenv_root()


def test_the_link_is_laid_once(
    activate: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = named(monkeypatch, root / "mlflow-1")
    link.lay(activate)
    assert os.readlink(folder / "bin" / "activate") == str(activate)
    assert "`mlflow run .` uses" in capsys.readouterr().out
    link.lay(activate)
    assert capsys.readouterr().out == ""


def test_another_name_moves_the_link(
    activate: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, root / "mlflow-1")
    link.lay(activate)
    named(monkeypatch, root / "mlflow-2")
    link.lay(activate)
    assert [p.name for p in root.iterdir()] == ["mlflow-2"]
    assert (root / "mlflow-2" / "bin" / "activate").read_text() == "# activate\n"


def test_removing_takes_only_what_was_laid(
    activate: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named(monkeypatch, root / "mlflow-1")
    link.lay(activate)
    made = root / "mlflow-made-by-uv" / "bin"
    made.mkdir(parents=True)
    (made / "activate").write_text("# uv's\n")
    other = root / "mlflow-of-another-checkout" / "bin"
    other.mkdir(parents=True)
    (other / "activate").symlink_to(tmp_path / "elsewhere" / ".venv" / "bin" / "activate")
    arguments = [str(ROOT / "scripts" / "link_mlflow_env.py"), ".venv", "--remove"]
    subprocess.run(  # -S: the standard library only, as in `make clean`
        [sys.executable, "-S", *arguments], cwd=tmp_path / "checkout", check=True
    )
    assert {p.name for p in root.iterdir()} == {made.parent.name, other.parent.name}
    assert activate.exists()


def test_a_folder_of_somebody_else_stays(
    activate: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = named(monkeypatch, root / "mlflow-1")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").write_text("# uv's\n")
    link.lay(activate)
    assert (folder / "bin" / "activate").read_text() == "# uv's\n"
    assert "stays as it is" in capsys.readouterr().out


def test_other_files_beside_the_link_stay(
    activate: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = named(monkeypatch, root / "mlflow-1")
    link.lay(activate)
    (folder / "notes").write_text("mine")
    link.remove(activate, root)
    assert [p.name for p in folder.iterdir()] == ["notes"]
    assert "other files" in capsys.readouterr().out


def test_a_link_to_an_environment_that_is_gone_is_replaced(
    activate: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = named(monkeypatch, root / "mlflow-1")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").symlink_to(tmp_path / "gone" / "activate")
    link.lay(activate)
    assert os.readlink(folder / "bin" / "activate") == str(activate)


def test_a_link_to_another_checkout_stays(
    activate: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "activate"
    other.parent.mkdir()
    other.write_text("# the same packages\n")
    folder = named(monkeypatch, root / "mlflow-1")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "activate").symlink_to(other)
    link.lay(activate)
    assert os.readlink(folder / "bin" / "activate") == str(other)


def test_another_mlflow_is_a_message_and_not_a_failure(
    activate: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import mlflow.utils.virtualenv

    monkeypatch.delattr(mlflow.utils.virtualenv, "_get_virtualenv_name")
    link.lay(activate)
    printed = capsys.readouterr().out
    assert "_get_virtualenv_name" in printed
    assert "needs pyenv, or --env-manager local" in printed
    assert not root.exists()


def test_no_environment_is_a_message(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link.lay(tmp_path / "absent" / "bin" / "activate")
    assert "there is no" in capsys.readouterr().out
    assert not root.exists()


# --- the wheel -------------------------------------------------------------------------------


def test_the_wheel_holds_all_files_of_the_package(tmp_path: Path) -> None:
    """Built by setuptools from a copy of the tracked files, without network."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "ocp_mamba", "pyproject.toml", "README.md", "LICENSE", "NOTICE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    files = [name for name in listed.split("\0") if name and (ROOT / name).is_file()]
    for name in files:
        copy = tmp_path / "source" / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-index",
         "--no-build-isolation", "-w", tmp_path / "wheels", tmp_path / "source"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").iterdir()
    packed = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    assert packed == {name for name in files if name.startswith("ocp_mamba/")}
    assert {"ocp_mamba/py.typed", "ocp_mamba/sweep/space.yaml"} <= packed
    assert "ocp_mamba/kernels/csrc/mixer.cpp" in packed
