import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from data_maker import TINY
from servers import Server, scoring_server

from ocp_mamba.config import ModelConfig
from ocp_mamba.model.build import build_model
from ocp_mamba.model.checkpoint import load_model, save_checkpoint
from ocp_mamba.model.conditioning import RelationLVM
from ocp_mamba.serving.pyfunc import input_example, pip_requirements, save_pyfunc
from ocp_mamba.serving.request import read_relations, read_request

PLAIN, WITH_TMD = ModelConfig(**TINY), ModelConfig(**TINY, d_tmd=16)
RELATED = ModelConfig(**TINY, relations=("is a", "part of"))


def saved(folder: Path, config: ModelConfig) -> Path:
    torch.manual_seed(1)
    save_checkpoint(folder / "model.pt", build_model(config), dataset_fingerprint="f", encoder={})
    save_pyfunc(folder / "pyfunc", folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("plain"), PLAIN)


@pytest.fixture(scope="module")
def with_tmd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("tmd"), WITH_TMD)


@pytest.fixture(scope="module")
def served(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The stock scoring server, without leave to unpickle."""
    server = scoring_server(
        str(plain / "pyfunc"),
        tmp_path_factory.mktemp("serve"),
        MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false",
    )
    server.start()
    yield server
    server.kill()


def vectors(B: int, L: int, width: int = 768) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((B, L, width)).astype(np.float32)


def ask(server: Server, body: str) -> tuple[int, Any]:
    request = urllib.request.Request(
        server.url + "/invocations", body.encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_served_vector_is_the_checkpoints(served: Server, plain: Path) -> None:
    model = load_model(plain / "model.pt")
    x = vectors(2, 5)
    status, answer = ask(served, json.dumps({"inputs": x.tolist()}))
    assert status == 200
    with torch.inference_mode():
        wanted = model(torch.from_numpy(x)).numpy()
        short = model(torch.from_numpy(x), lengths=torch.tensor([5, 2])).numpy()
    np.testing.assert_allclose(np.array(answer["predictions"]), wanted, atol=1e-5)
    status, answer = ask(served, json.dumps({"inputs": x.tolist(), "params": {"lengths": [5, 2]}}))
    assert status == 200
    np.testing.assert_allclose(np.array(answer["predictions"]), short, atol=1e-5)
    assert np.abs(wanted[1] - short[1]).max() > 1e-3


def replaced(value: str) -> str:
    """A request whose number at [0][1][2] is written as ``value``."""
    x: list[Any] = vectors(1, 3).tolist()
    x[0][1][2] = "HERE"
    return json.dumps({"inputs": x}).replace('"HERE"', value)


ZERO = vectors(1, 3)
ZERO[0, 1] = 0


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (json.dumps({"inputs": vectors(1, 2, 784).tolist()}), ["(1, 2, 784)", "(-1, -1, 768)"]),
        (json.dumps({"inputs": [[0.5] * 768]}), ["(1, 768)", "(-1, -1, 768)"]),
        (json.dumps({"inputs": []}), ["Failed to enforce schema"]),
        (json.dumps({"inputs": [[[]]]}), ["(1, 1, 0)", "(-1, -1, 768)"]),
        (json.dumps({"inputs": ZERO.tolist()}), ["seq_vectors[0][1] is all zeros"]),
        (replaced("NaN"), ["seq_vectors[0][1][2] is not a finite number"]),
        (replaced("Infinity"), ["seq_vectors[0][1][2] is not a finite number"]),
        (replaced("1e400"), ["seq_vectors[0][1][2] is not a finite number"]),
        (replaced("null"), ["seq_vectors[0][1][2] is not a finite number"]),
        (replaced('"text"'), [""]),
        ('{"inputs": [[[1.0, ', [""]),
        (
            json.dumps({"inputs": vectors(1, 2).tolist(), "params": {"lengths": [3]}}),
            ["lengths must hold 1 numbers from 1 to 2"],
        ),
        (
            json.dumps({"inputs": vectors(1, 2).tolist(), "params": {"lengths": [1, 1]}}),
            ["lengths must hold 1 numbers from 1 to 2"],
        ),
    ],
)
def test_bad_request_is_a_clean_400(served: Server, body: str, messages: list[str]) -> None:
    status, answer = ask(served, body)
    assert status == 400
    text = json.dumps(answer)
    assert "Traceback" not in text
    for message in messages:
        assert message in text


def test_model_with_tmd_takes_named_tensors(with_tmd: Path) -> None:
    served = mlflow.pyfunc.load_model(str(with_tmd / "pyfunc"))
    example = input_example(WITH_TMD)
    assert isinstance(example, dict)
    model = load_model(with_tmd / "model.pt")
    wanted = model(*(torch.from_numpy(example[k]) for k in ("seq_vectors", "tmd")))
    np.testing.assert_allclose(served.predict(example), wanted.detach().numpy(), atol=1e-6)
    with pytest.raises(mlflow.MlflowException, match="tmd"):
        served.predict({"seq_vectors": example["seq_vectors"]})
    bad = example["tmd"].copy()
    bad[0, 3] = np.nan
    with pytest.raises(mlflow.MlflowException, match=r"tmd\[0\]\[3\] is not a finite number"):
        served.predict({**example, "tmd": bad})
    with pytest.raises(mlflow.MlflowException, match=r"tmd has shape \(2, 16\), wanted \(1, 16\)"):
        served.predict({**example, "tmd": np.repeat(example["tmd"], 2, axis=0)})


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_only_direction_counts_at_any_scale(plain: Path, scale: float) -> None:
    model = load_model(plain / "model.pt")
    x = vectors(1, 3)
    got, _, lengths = read_request(x * np.float32(scale), None, PLAIN)
    with torch.inference_mode():
        torch.testing.assert_close(
            model(got, lengths=lengths), model(torch.from_numpy(x)), atol=1e-5, rtol=0
        )


def test_padding_may_be_zeros() -> None:
    got, tmd, lengths = read_request(ZERO, [1], PLAIN)
    assert (got[0, 1] == 0).all()
    assert tmd is None
    assert lengths.tolist() == [1]


def test_loads_where_the_package_is_not_installed(plain: Path, tmp_path: Path) -> None:
    """In an interpreter without this checkout on its path, from the copied code alone."""
    shutil.copytree(plain / "pyfunc", tmp_path / "pyfunc")
    script = (
        "import importlib.util, sys\n"
        "import mlflow, numpy as np\n"
        "assert importlib.util.find_spec('ocp_mamba') is None\n"
        "model = mlflow.pyfunc.load_model('pyfunc')\n"
        "import ocp_mamba\n"
        "assert 'pyfunc' in ocp_mamba.__file__, ocp_mamba.__file__\n"
        "print(model.predict(np.ones((1, 2, 768), np.float32)).shape)\n"
    )
    site = Path(np.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-S", "-c", script],  # -S: no .pth file, so no editable install
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "(1, 768)\n", done.stderr


def test_no_pickle_is_saved_and_pins_can_be_installed(plain: Path) -> None:
    files = {p.suffix for p in (plain / "pyfunc").rglob("*") if p.is_file()}
    assert not files & {".pkl", ".pickle", ".pyc"}
    pins = pip_requirements()
    assert [p.split("==")[0] for p in pins] == ["mlflow", "numpy", "torch"]
    assert not any("+" in p for p in pins)
    written = (plain / "pyfunc" / "requirements.txt").read_text().split()
    assert set(pins) <= set(written)


def test_relations_are_optional_params_and_change_the_answer(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = build_model(RELATED)
    assert isinstance(model, RelationLVM)
    torch.nn.init.normal_(model.relation_adapter.adapter.weight)
    save_checkpoint(tmp_path / "model.pt", model, dataset_fingerprint="f", encoder={})
    save_pyfunc(tmp_path / "pyfunc", tmp_path / "model.pt")
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "pyfunc"))
    x = vectors(2, 3)
    unit = torch.nn.functional.normalize(torch.from_numpy(x), dim=-1)
    relation, confidence = [0, 1, 2, 0, 2, 0], [0, 0.5, 1, 0, 0.25, 0]
    steps = torch.tensor([relation, confidence]).T.reshape(2, 3, 2)
    with torch.inference_mode():
        plain, related = model(unit).numpy(), model(unit, relations=steps).numpy()
    np.testing.assert_allclose(loaded.predict(x), plain, atol=1e-6)
    params = {"relation": relation, "confidence": confidence}
    np.testing.assert_allclose(loaded.predict(x, params=params), related, atol=1e-6)
    assert np.abs(plain - related).max() > 1e-3


@pytest.mark.parametrize(
    ("relation", "confidence", "message"),
    [
        ([0, 1, 2], None, r"4 numbers \(2 sequences of 2 positions\) from 0 to 2 .*1 is a, 2 part"),
        ([0, 1, 0, 3], None, "values 0 to 3"),
        ([0, -1, 0, 1], None, "values -1 to 1"),
        ([0, 1, 0, 1], [0, 1.5, 0, 1], "4 numbers from 0 to 1"),
        ([0, 1, 0, 1], [0, float("nan"), 0, 1], "4 numbers from 0 to 1"),
        (None, [0, 1, 0, 1], "confidence is given without relation"),
    ],
)
def test_bad_relations_are_refused(relation: Any, confidence: Any, message: str) -> None:
    with pytest.raises(mlflow.exceptions.MlflowException, match=message):
        read_relations(relation, confidence, 2, 2, RELATED)


def test_without_confidences_known_relations_are_sure() -> None:
    assert read_relations(None, None, 2, 2, RELATED) is None
    found = read_relations([0, 2, 1, 0], None, 2, 2, RELATED)
    assert found is not None
    assert found.tolist() == [[[0, 0], [2, 1]], [[1, 1], [0, 0]]]
