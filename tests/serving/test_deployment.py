"""Where a registered version runs elsewhere: its image, and its requirements in a new environment.

No container engine is needed: what the Dockerfile copies is looked at, and the commands with which
it installs run in a new virtual environment.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from bundles import write_text_model
from click.testing import CliRunner
from data_maker import make_dataset
from mlflow.models.cli import commands
from servers import scoring_server
from trainings import TINY

from ocp_mamba.serving.text_pyfunc import predictor_of_folder

DATA = make_dataset(60, 40)
CHAIN = [str(word) for word in DATA.texts[:3]]
IN_IMAGE = "/opt" + "/ml/model"
"""Where MLflow's image holds the model."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that `mlflow models generate-dockerfile` writes for a text version."""
    folder = tmp_path_factory.mktemp("image")
    model = write_text_model(folder, DATA, TINY)
    words = ["generate-dockerfile", "-m", str(model), "-d", str(folder / "image")]
    result = CliRunner().invoke(commands, words)
    assert result.exit_code == 0, result.output
    return folder / "image"


def test_the_image_holds_the_whole_model_and_no_pickle(image: Path) -> None:
    dockerfile = (image / "Dockerfile").read_text()
    [(source, target)] = re.findall(r"^COPY (\S+) (\S+)$", dockerfile, re.MULTILINE)
    assert target == IN_IMAGE
    copied = image / source
    predictor = predictor_of_folder(copied / "artifacts")  # compares every digest
    assert predictor.predict([CHAIN])[0]["concepts"] == CHAIN
    assert not [p for p in copied.rglob("*") if p.suffix in (".pkl", ".pickle")]
    assert (copied / "code" / "ocp_mamba" / "serving" / "text_pyfunc_entry.py").is_file()
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert re.search(rf"^FROM python:{re.escape(ours)}\.\d+-slim$", dockerfile, re.MULTILINE)
    assert f"C._install_pyfunc_deps('{IN_IMAGE}'" in dockerfile
    assert dockerfile.rstrip().splitlines()[-1].startswith("ENTRYPOINT")


@pytest.mark.slow
def test_its_requirements_install_in_a_new_environment_and_serve_there(
    image: Path, tmp_path: Path
) -> None:
    """By the image's own commands, with pip's configuration of this machine."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    programs = venv / "bin"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PIP_NO_COMPILE"] = "1"  # half of the time
    environment["PATH"] = f"{programs}{os.pathsep}{os.environ['PATH']}"
    model = image / "model_dir" / "pyfunc"
    dockerfile = (image / "Dockerfile").read_text().replace(IN_IMAGE, str(model))
    for command in re.findall(r"^RUN ((?:pip|python) .*)$", dockerfile, re.MULTILINE):
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-3_000:]
    installed = subprocess.run(
        [str(programs / "python"), "-c", "import torch, faiss, mlflow; print(torch.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert installed.startswith(str(venv))
    server = scoring_server(
        str(model), tmp_path, python=str(programs / "python"), PYTHONPATH="",
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )  # fmt: skip
    server.start()
    try:
        body = json.dumps({"inputs": [{"concepts": CHAIN}], "params": {"return_vectors": True}})
        request = urllib.request.Request(
            server.url + "/invocations", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            [got] = json.load(answer)["predictions"]
    finally:
        server.kill()
        shutil.rmtree(venv)
    [wanted] = predictor_of_folder(model / "artifacts").predict([CHAIN], return_vectors=True)
    np.testing.assert_allclose(got["steps"][0]["vector"], wanted["steps"][0]["vector"], atol=1e-5)
    assert [n["concept"] for n in got["steps"][0]["next"]] == [
        n["concept"] for n in wanted["steps"][0]["next"]
    ]


@pytest.mark.slow
def test_mlflow_models_predict_answers_the_same_request(image: Path, tmp_path: Path) -> None:
    model = image / "model_dir" / "pyfunc"
    (tmp_path / "request.json").write_text(json.dumps({"inputs": [{"concepts": CHAIN}]}))
    words = ["models", "predict", "-m", str(model), "-t", "json", "--env-manager", "local"]
    words += ["-i", str(tmp_path / "request.json"), "-o", str(tmp_path / "answer.json")]
    subprocess.run([sys.executable, "-m", "mlflow", *words], cwd=tmp_path, check=True)
    [got] = json.loads((tmp_path / "answer.json").read_text())["predictions"]
    assert got["concepts"] == CHAIN
    assert len(got["steps"][0]["next"]) == 5
