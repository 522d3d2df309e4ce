"""MLflow's protocol: its clients work unchanged, in vectors and in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from data_maker import TINY
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc.scoring_server.client import ScoringServerClient
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array
from services import Running, client_of, write_model

from ocp_mamba.config import ModelConfig
from ocp_mamba.serving.pyfunc import input_example, save_pyfunc

WORDS = ["concept é 1", "concept é 2"]
IN_WORDS = ModelSignature(
    inputs=Schema([ColSpec(Array(DataType.string), "concepts")]),
    params=ParamSchema([ParamSpec("top_k", "long", 5), ParamSpec("steps", "long", 1)]),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(write_model(tmp_path_factory.mktemp("model"))) as found:
        yield found


def test_mlflows_client_gets_what_the_pyfunc_answers(running: Running, tmp_path: Path) -> None:
    save_pyfunc(tmp_path / "pyfunc", running.service.source.path)
    pyfunc = mlflow.pyfunc.load_model(str(tmp_path / "pyfunc"))
    host, port = running.url.removeprefix("http://").split(":")
    client = ScoringServerClient(host, int(port))
    client.ping()
    assert client.get_version() == mlflow.__version__
    x = np.random.default_rng(0).standard_normal((3, 5, 768)).astype(np.float32)
    for params in (None, {"lengths": [5, 2, 1]}):
        found = client.invoke(x, params).get_predictions()
        np.testing.assert_allclose(
            np.asarray(found, dtype=np.float32), pyfunc.predict(x, params=params), atol=1e-5
        )


def test_named_tensors_of_a_model_with_tmd(tmp_path: Path) -> None:
    config = ModelConfig(**TINY, d_tmd=16)
    source = write_model(tmp_path, config)
    save_pyfunc(tmp_path / "pyfunc", source.path)
    example = input_example(config)
    assert isinstance(example, dict)
    wanted = mlflow.pyfunc.load_model(str(tmp_path / "pyfunc")).predict(example)
    with client_of(source) as client:
        inputs = {name: value.tolist() for name, value in example.items()}
        got = client.post("/invocations", json={"inputs": inputs})
        assert got.status_code == 200, got.text
        np.testing.assert_allclose(got.json()["predictions"], wanted, atol=1e-5)
        assert got.headers["x-model-version"] == client.service.serving.version


def test_a_version_for_people_is_asked_in_words(tmp_path: Path) -> None:
    with client_of(write_model(tmp_path)) as client:
        service = client.service
        service.serving = replace(service.serving, meta=Model(signature=IN_WORDS))
        wanted = service.serving.words.predict([WORDS], 2, 3)
        rows = pd.DataFrame({"concepts": [WORDS]})
        for content in (
            {"dataframe_records": rows.to_dict("records")},
            {"dataframe_split": rows.to_dict("split")},
            {"inputs": [{"concepts": WORDS}]},
        ):
            got = client.post("/invocations", json={**content, "params": {"top_k": 2, "steps": 3}})
            assert got.status_code == 200, got.text
            [found] = got.json()["predictions"]
            assert found["concepts"] == WORDS
            for step, other in zip(found["steps"], wanted[0]["steps"], strict=True):
                assert [n["concept"] for n in step["next"]] == [n["concept"] for n in other["next"]]
        unknown = {"dataframe_records": [{"concepts": ["nothing like it"]}]}
        for content, says in (
            (unknown, "unknown text"),
            ({**unknown, "params": {"topk": 2}}, "'topk'"),
            ({"dataframe_records": [{"concept": WORDS}]}, "concepts"),
            ({"dataframe_records": [{"concepts": [1]}]}, "input types"),
        ):
            got = client.post("/invocations", json=content)
            assert got.status_code == 400, got.text
            assert says in got.json()["message"]
            assert len(got.content) < 1000
