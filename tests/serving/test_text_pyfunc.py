"""The model for people, through MLflow's own scoring application and Python client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from bundles import write_text_model
from data_maker import make_dataset
from encoder_maker import save_tiny_encoder
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server
from trainings import TINY

from ocp_mamba.config import override
from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder
from ocp_mamba.errors import EncoderError
from ocp_mamba.serving.text import TextPredictor
from ocp_mamba.serving.text_pyfunc import ENCODER_VARIABLE, TEXT_PACKAGES, predictor_of_folder

DATA = make_dataset(60, 40)
WORDS = [str(word) for word in DATA.texts]
CHAINS = [[WORDS[3], WORDS[8]], [WORDS[1], WORDS[5], WORDS[20]]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text"), DATA, TINY)


@pytest.fixture(scope="module")
def predictor(saved: Path) -> TextPredictor:
    return predictor_of_folder(saved / "artifacts")


@pytest.fixture(scope="module")
def client(saved: Path) -> TestClient:
    """MLflow's scoring application, as `mlflow models serve` runs it."""
    return TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(saved))))


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": [{"concepts": chain} for chain in CHAINS]},
        {"dataframe_records": [{"concepts": chain} for chain in CHAINS]},
        {"dataframe_split": {"columns": ["concepts"], "data": [[chain] for chain in CHAINS]}},
    ],
    ids=["inputs", "records", "split"],
)
def test_a_request_in_each_of_mlflows_forms_is_answered(
    client: TestClient, predictor: TextPredictor, body: dict[str, Any]
) -> None:
    params = {"top_k": 2, "steps": 3, "return_vectors": True}
    answer = client.post("/invocations", json={**body, "params": params})
    assert answer.status_code == 200, answer.text
    wanted = predictor.predict(CHAINS, 2, 3, True)
    for got, want in zip(answer.json()["predictions"], wanted, strict=True):
        assert got["concepts"] == want["concepts"]
        assert len(got["steps"]) == 3
        for a, b in zip(got["steps"], want["steps"], strict=True):
            assert [n["concept"] for n in a["next"]] == [n["concept"] for n in b["next"]]
            np.testing.assert_allclose(a["vector"], b["vector"], atol=1e-5)


def test_the_request_is_small_and_the_defaults_are_five_concepts_of_one_step(
    client: TestClient,
) -> None:
    body = json.dumps({"inputs": [{"concepts": CHAINS[0]}]})
    answer = client.post(
        "/invocations", content=body, headers={"Content-Type": "application/json"}
    ).json()
    assert len(body) < 100
    [prediction] = answer["predictions"]
    [step] = prediction["steps"]
    assert len(step["next"]) == 5
    assert "vector" not in step


@pytest.mark.parametrize(
    ("concepts", "params", "message"),
    [
        (["concept é 4o"], {}, "unknown text: concepts[0][0] 'concept é 4o' (nearest: 'concept é"),
        ([], {}, "concepts[0] has 0 texts; 1 to 10,000 are wanted"),
        ([" "], {}, "concepts[0][0] is ' ' of 1 characters"),
        ("ormer", {}, "Expected data to be list or numpy array, got str"),
        ([1, 2], {}, "Can not safely convert int64"),
        (None, {}, "got NoneType"),
        (CHAINS[0], {"top_k": 0}, "top_k is 0; a whole number from 1 to 40 is wanted"),
        (CHAINS[0], {"top_k": 41}, "top_k is 41; a whole number from 1 to 40 is wanted"),
        (CHAINS[0], {"top_k": 1.5}, "Can not safely convert"),
        (CHAINS[0], {"top_k": "5"}, "Can not safely convert"),
        (CHAINS[0], {"steps": 10**9}, "steps is 1000000000; a whole number from 1 to 100"),
        (CHAINS[0], {"return_vectors": 2}, "return_vectors"),
    ],
)
def test_a_bad_request_is_a_400_under_a_kilobyte_without_a_traceback(
    client: TestClient, concepts: Any, params: dict[str, Any], message: str
) -> None:
    answer = client.post(
        "/invocations", json={"inputs": [{"concepts": concepts}], "params": params}
    )
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert "Traceback" not in answer.text
    assert len(answer.content) < 1_000


def test_the_stock_server_drops_a_misspelt_param(client: TestClient) -> None:
    """Said in docs/ask.md; `ocp-mamba serve` refuses it. Fails when MLflow begins to refuse it."""
    body = {"inputs": [{"concepts": CHAINS[0]}], "params": {"topk": 2}}
    answer = client.post("/invocations", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["predictions"][0]["steps"][0]["next"]) == 5


def test_mlflows_python_client_takes_a_frame(saved: Path, predictor: TextPredictor) -> None:
    loaded = mlflow.pyfunc.load_model(str(saved))
    frame = pd.DataFrame({"concepts": CHAINS})
    assert loaded.predict(frame, params={"top_k": 2}) == predictor.predict(CHAINS, top_k=2)


def test_the_example_that_mlflow_keeps_is_answered(client: TestClient, saved: Path) -> None:
    body = (saved / "serving_input_example.json").read_text(encoding="utf-8")
    answer = client.post("/invocations", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["predictions"][0]["concepts"] == WORDS[:3]


def test_the_signature_says_what_to_ask(saved: Path) -> None:
    signature = mlflow.models.get_model_info(str(saved)).signature
    assert str(signature.inputs) == "['concepts': Array(string) (required)]"
    assert [param.name for param in signature.params] == ["top_k", "steps", "return_vectors"]


def test_what_is_saved_has_no_pickle_and_pins_what_it_needs(saved: Path) -> None:
    files = {path.suffix for path in saved.rglob("*") if path.is_file()}
    assert not files & {".pkl", ".pickle", ".pyc"}
    written = (saved / "requirements.txt").read_text().split()
    assert set(TEXT_PACKAGES) <= {line.split("==")[0] for line in written}


def test_a_model_with_tmd_takes_codes(tmp_path: Path) -> None:
    folder = write_text_model(tmp_path, DATA, override(TINY, d_tmd=16))
    loaded = mlflow.pyfunc.load_model(str(folder))
    direct = predictor_of_folder(folder / "artifacts")
    rows = [{"concepts": CHAINS[0], "codes": [1, 1, 6]}]
    assert loaded.predict(pd.DataFrame(rows)) == direct.predict(CHAINS[:1], codes=[[1, 1, 6]])
    plain = pd.DataFrame({"concepts": CHAINS[:1]})
    assert loaded.predict(plain) == direct.predict(CHAINS[:1])


@pytest.mark.slow
def test_an_encoder_in_the_environment_reads_unknown_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_encoder(tmp_path / "encoder")
    encoder = SentenceTransformerEncoder(str(folder))
    meta = DATA.meta | {"encoder": {"name": encoder.name, "weight_hash": encoder.weight_hash}}
    ours = make_dataset(60, 40, meta=meta)
    monkeypatch.setenv(ENCODER_VARIABLE, str(folder))
    model = write_text_model(tmp_path, ours, TINY)
    loaded = mlflow.pyfunc.load_model(str(model))
    [answer] = loaded.predict(pd.DataFrame({"concepts": [[WORDS[0], "unheard of"]]}))
    assert answer["concepts"] == [WORDS[0], "unheard of"]
    monkeypatch.setenv(ENCODER_VARIABLE, str(save_tiny_encoder(tmp_path / "other", seed=1)))
    with pytest.raises(EncoderError, match="encoder mismatch"):
        mlflow.pyfunc.load_model(str(model))
