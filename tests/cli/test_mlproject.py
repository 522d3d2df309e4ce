"""MLproject, conda.yaml, python_env.yaml, pyproject.toml and constraints.txt agree."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import string
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import click
import mlflow
import pytest
import yaml
from command import run
from mlflow.projects import _project_spec
from mlflow.utils.environment import _PythonEnv
from mlflow_run import mlflow_run, mlflow_run_with
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from sweeps import Files, require_exactly, runs_of

from ocp_mamba.cli.main import main
from ocp_mamba.cli.options import eval_limits
from ocp_mamba.config import MODEL_SIZES, TrainConfig
from ocp_mamba.data.analysis.sample import EvalLimits
from ocp_mamba.data.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]
PROJECT = _project_spec.load_project(str(ROOT))
ENTRY_POINTS = {
    name: PROJECT.get_entry_point(name) for name in ("main", "evaluate", "variants", "sweep")
}
SUBCOMMANDS = {"main": "train", "evaluate": "evaluate", "variants": "variants", "sweep": "sweep"}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def arguments(entry_point: str, **values: str) -> list[str]:
    """The words that the shell hands to ocp-mamba for an entry point."""
    command = ENTRY_POINTS[entry_point].compute_command(values, storage_dir=None)
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ocp_mamba.cli"]
    return words[3:]


def parsed(entry_point: str, **values: str) -> dict[str, Any]:
    """What the command line reads from an entry point's command, without running it."""
    words = arguments(entry_point, **values)
    context = click.Context(main)
    name, command, rest = main.resolve_command(context, words)
    assert (name, command is not None) == (SUBCOMMANDS[entry_point], True)
    assert command is not None
    return command.make_context(name, rest, parent=context).params


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_the_command_mentions_every_parameter(entry_point: str) -> None:
    entry = ENTRY_POINTS[entry_point]
    mentioned = {field for _, field, _, _ in string.Formatter().parse(entry.command) if field}
    assert mentioned == set(entry.parameters), "MLflow drops a parameter that is not mentioned"


@pytest.mark.parametrize("entry_point", ENTRY_POINTS)
def test_every_parameter_has_a_default_and_no_type_that_moves_it(entry_point: str) -> None:
    for name, parameter in ENTRY_POINTS[entry_point].parameters.items():
        assert parameter.default is not None, name
        # path is resolved against the caller's folder alone; uri refuses relative paths
        assert parameter.type in ("string", "float"), name


def test_main_has_the_parameters_that_were_promised() -> None:
    promised = "data model_size n_layers batch_size max_epochs early_stopping lr seed output"
    assert set(promised.split()) <= set(ENTRY_POINTS["main"].parameters)


def test_the_defaults_are_those_of_the_package() -> None:
    flags, config = parsed("main"), TrainConfig()
    assert flags["max_epochs"] is None, "auto: what the preset or the config file says"
    for name in ("batch_size", "lr", "seed"):
        assert flags[name] == getattr(config, name), name
    assert flags["model_size"] in MODEL_SIZES
    assert flags["n_layers"] is None
    assert flags["d_state"] is None
    assert flags["early_stopping"] is True
    assert flags["tmd"] is None
    assert flags["preset_name"] == "base"
    assert flags["baselines"] == "cheap"
    for limits in (eval_limits(flags), eval_limits(parsed("evaluate"))):
        assert limits == EvalLimits()
    assert (ROOT / flags["data"]).is_file(), "the default dataset ships with the project"


def test_given_values_arrive() -> None:
    flags = parsed("main", n_layers="3", d_state="32", early_stopping="false", lr="1e-4")
    assert (flags["n_layers"], flags["d_state"]) == (3, 32)
    assert flags["early_stopping"] is False
    assert flags["lr"] == 1e-4


@pytest.mark.parametrize("name", ["two words.npz", "it's.npz", "$(touch x).npz", "a;b & c.npz"])
def test_a_value_stays_one_word(name: str) -> None:
    assert parsed("main", data=name)["data"] == name


def test_an_undeclared_parameter_is_refused_or_is_a_flag() -> None:
    with pytest.raises(click.NoSuchOption):
        parsed("main", bogus="7")
    assert parsed("main", patience="2")["patience"] == 2
    assert parsed("main", resume="true")["resume"] is True
    assert not parsed("main", resume="false")["resume"]


def test_the_other_entry_points_parse() -> None:
    assert parsed("evaluate")["split"] == "val"
    flags = parsed("sweep", n_trials="5", objective="cosine,p1", timeout="2h", retrain_best="true")
    assert (flags["n_trials"], flags["objective"]) == (5, ("cosine,p1",))
    assert (flags["study"], flags["space"], flags["pruner"]) == (None, None, None)
    assert (flags["timeout"], flags["retrain_best"]) == (7200, True)
    assert parsed("sweep")["timeout"] == 0
    assert parsed("sweep")["retrain_best"] is False
    found = parsed("variants", only="1B,1D", seeds="0,1")
    assert (found["only"], found["seeds"]) == (("tmd", "deep"), (0, 1))
    assert parsed("variants")["max_epochs"] is None


def test_no_entry_point_needs_conda() -> None:
    assert PROJECT.env_type == "python_env"
    assert Path(PROJECT.env_config_path).name == "python_env.yaml"


# --- environments and pins -------------------------------------------------------------------


def requirements(lines: list[str]) -> dict[str, Requirement]:
    return {canonicalize_name((r := Requirement(line)).name): r for line in lines}


def pip_lines(lines: list[str]) -> list[str]:
    assert lines[0] == "-c constraints.txt", "the pins come first"
    return lines[1:]


WANTED = requirements(PYPROJECT["dependencies"])


def conda_dependencies() -> list[Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "conda.yaml").read_text(encoding="utf-8"))
    return list(content["dependencies"])


def test_conda_yaml_asks_for_what_pyproject_asks_for() -> None:
    pip = next(d["pip"] for d in conda_dependencies() if isinstance(d, dict))
    assert requirements(pip_lines(pip)) == WANTED
    python = next(d for d in conda_dependencies() if str(d).startswith("python"))
    assert python == f"python{PYPROJECT['requires-python']}"


def test_mlflow_converts_conda_yaml_whole() -> None:
    found = _PythonEnv.get_dependencies_from_conda_yaml(ROOT / "conda.yaml")
    assert requirements(pip_lines(found["dependencies"])) == WANTED
    assert SpecifierSet(PYPROJECT["requires-python"]).contains(found["python"])
    names = {d for d in conda_dependencies() if isinstance(d, str)}
    assert {re.split(r"[<>=]", d)[0] for d in names} == {"python", "pip"}, "others would be lost"


def test_python_env_yaml_asks_for_what_pyproject_asks_for() -> None:
    env = _PythonEnv.from_yaml(ROOT / "python_env.yaml")
    assert requirements(pip_lines(env.dependencies)) == WANTED
    named = yaml.safe_load((ROOT / "python_env.yaml").read_text(encoding="utf-8"))
    assert "python" not in named, "a version named here would have to be built by pyenv"


def pins() -> dict[str, list[Requirement]]:
    found: dict[str, list[Requirement]] = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            found.setdefault(canonicalize_name(pin.name), []).append(pin)
    return found


def test_the_pins_lie_within_the_bounds() -> None:
    extras = PYPROJECT["optional-dependencies"]
    lines = [*PYPROJECT["dependencies"], *extras["encode"], *extras["ontology"], *extras["dev"]]
    for name, requirement in requirements(lines).items():
        if name == "ocp-mamba":
            continue
        assert name in pins(), f"constraints.txt does not pin {name}: make lock"
        for pin in pins()[name]:
            version = str(pin.specifier).removeprefix("==")
            assert requirement.specifier.contains(version, prereleases=True), (pin, requirement)


def test_the_pins_fit_every_platform() -> None:
    for name, found in pins().items():
        assert not name.startswith(("nvidia-", "cuda-", "triton")), name
        for pin in found:
            assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"no exact public version: {pin}"


# --- the real thing --------------------------------------------------------------------------


@pytest.mark.slow
def test_mlflow_run_trains_from_another_folder(
    dataset: Dataset, store: str, tmp_path: Path
) -> None:
    """``mlflow run <project> -P data=mine.npz``, typed in a folder that is not the project's."""
    dataset.save(tmp_path / "mine.npz")
    printed = mlflow_run(
        tmp_path, str(ROOT), "-P", "data=mine.npz", "-P", "model_size=tiny",
        "-P", "max_epochs=1", "-P", "output=out/model.pt",
    )  # fmt: skip
    assert "next_vec_cosine" in printed
    assert (tmp_path / "out" / "model.pt").is_file()
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (tracked,) = [r for r in runs if r.data.tags.get("mlflow.project.entryPoint") == "main"]
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["max_epochs"] == "1"
    assert "next_vec_cosine" in tracked.data.metrics


@pytest.mark.skipif(
    not (Path(sys.prefix) / "bin" / "activate").exists(), reason="this Python is in no environment"
)
def test_the_literal_command_needs_no_manager_of_environments(
    dataset: Dataset,
    store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``mlflow run . -P data=…`` after `make install`, on a machine without pyenv, conda and uv."""
    project = tmp_path / "project"
    project.mkdir()
    for name in ("MLproject", "python_env.yaml", "constraints.txt", "ocp_mamba"):
        (project / name).symlink_to(ROOT / name)
    dataset.save(project / "ocp_training_9k.npz")
    environment = {
        "PATH": os.pathsep.join(["/usr/bin", "/bin"]),
        "MLFLOW_ENV_ROOT": str(tmp_path / "environments"),
    }
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the runs go to the folder where this is typed
    for program in ("pyenv", "conda", "uv"):
        if shutil.which(program, path=environment["PATH"]):
            pytest.skip(f"{program} is in one of the system's own folders")
    script = ROOT / "scripts" / "link_mlflow_env.py"
    subprocess.run(
        [sys.executable, script, sys.prefix], env={**os.environ, **environment}, check=True
    )
    printed = mlflow_run_with(
        environment, project, ".", "-P", "data=ocp_training_9k.npz",
        "-P", "model_size=tiny", "-P", "max_epochs=1",
    )  # fmt: skip
    assert "next_vec_cosine" in printed
    assert (project / "outputs" / "model.pt").is_file()
    mlflow.set_tracking_uri(f"sqlite:///{project / 'mlflow.db'}")
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    (tracked,) = [r for r in runs if r.data.tags.get("mlflow.project.entryPoint") == "main"]
    assert tracked.info.artifact_uri.startswith(str(project))
    assert tracked.info.status == "FINISHED"
    assert tracked.data.tags["mlflow.project.env"] == "virtualenv"


@pytest.mark.slow
def test_mlflow_run_sweeps_in_its_own_run(store: str, tmp_path: Path) -> None:
    """``mlflow run <project> -e sweep``: its run is the parent; run again, it has more children."""
    files = Files.make(tmp_path)
    printed = mlflow_run(
        tmp_path, str(ROOT), "-e", "sweep", "-P", "data=small.npz", "-P", "space=space.yaml",
        "-P", "n_trials=2", "-P", "model_size=tiny", "-P", "max_epochs=1",
    )  # fmt: skip
    assert "2 of 2" in printed
    address = str(tmp_path / "sweeps.journal")
    require_exactly(2, address)
    (parent,) = runs_of("sweep")
    assert parent.data.tags["mlflow.project.entryPoint"] == "sweep"
    assert parent.data.params["n_trials"] == "2"
    assert "study small exists" in run(*files.new(), code=2), "another model: not the same study"
    run("sweep", "--join", "small", "--n-trials", 3, "--quiet")
    require_exactly(3, address)
    assert [r.info.run_id for r in runs_of("sweep")] == [parent.info.run_id]
