"""Predictions over HTTP are the model's, in words and in vectors, alone and in batches."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_requests import NPY, npy
from data_maker import TINY
from fastapi.testclient import TestClient
from services import client_of, write_model

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.build.tmd import dense
from ocp_mamba.service.source import FileSource
from ocp_mamba.service.version import like_lengths

WORDS = [f"concept é {i}" for i in range(30)]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(write_model(tmp_path_factory.mktemp("model"))) as running:
        yield running


def ask(client: TestClient, **content: Any) -> dict[str, Any]:
    got = client.post("/v1/predict", json=content)
    assert got.status_code == 200, got.text
    return got.json()


def vectors(B: int, L: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((B, L, 768)).astype(np.float32)


def test_words_are_answered_as_the_text_predictor_does(client: TestClient) -> None:
    asked = [WORDS[:3], [WORDS[7].upper()], WORDS[4:9]]
    answer = ask(client, concepts=asked, top_k=4, steps=3, return_vectors=True)
    version = client.service.serving
    assert answer["model"] == {"name": "tiny", "version": version.version}
    wanted = version.words.predict(asked, 4, 3, True)
    for found, expected in zip(answer["predictions"], wanted, strict=True):
        assert found["concepts"] == expected["concepts"]
        for step, other in zip(found["steps"], expected["steps"], strict=True):
            assert [n["concept"] for n in step["next"]] == [n["concept"] for n in other["next"]]
            for a, b in zip(step["next"], other["next"], strict=True):
                assert a["score"] == pytest.approx(b["score"], abs=1e-5)
            np.testing.assert_allclose(step["vector"], other["vector"], atol=1e-5)


def test_an_answer_has_no_more_than_was_agreed(client: TestClient) -> None:
    got = client.post("/v1/predict", json={"concepts": [WORDS[:2]], "top_k": 1})
    answer = got.json()
    assert set(answer) == {"model", "predictions"}
    [prediction] = answer["predictions"]
    assert set(prediction) == {"concepts", "steps"}
    [step] = prediction["steps"]
    assert set(step) == {"next"}
    assert set(step["next"][0]) == {"concept", "score"}
    assert got.headers["X-Model-Version"] == answer["model"]["version"]


def test_vectors_in_json_and_npy_give_the_models_answer(client: TestClient) -> None:
    x = vectors(2, 5)
    model = client.service.serving.model
    with torch.inference_mode():
        wanted = model(torch.from_numpy(x), lengths=torch.tensor([5, 2])).numpy()
    answer = ask(client, vectors=x.tolist(), lengths=[5, 2], return_vectors=True, top_k=0)
    found = [p["steps"][0]["vector"] for p in answer["predictions"]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert answer["predictions"][0]["concepts"] is None
    for dtype in (np.float16, np.float32, np.float64):
        got = client.post(
            "/v1/predict?lengths=5,2&top_k=0",
            content=npy(x.astype(dtype)),
            headers=NPY | {"Accept": "application/x-npy"},
        )
        array = np.load(io.BytesIO(got.content), allow_pickle=False)
        assert array.shape == (2, 1, 768)
        np.testing.assert_allclose(array[:, 0], wanted, atol=2e-3 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e200, 1e300])
def test_only_direction_counts_also_far_from_one(client: TestClient, scale: float) -> None:
    x = vectors(1, 3).astype(np.float64)
    wanted = ask(client, vectors=x.tolist(), top_k=3)["predictions"][0]["steps"][0]["next"]
    found = ask(client, vectors=(x * scale).tolist(), top_k=3)["predictions"][0]["steps"][0]["next"]
    assert [n["concept"] for n in found] == [n["concept"] for n in wanted]


def test_many_at_once_are_answered_as_each_alone(client: TestClient) -> None:
    rng = np.random.default_rng(0)
    asked = [[WORDS[i] for i in rng.integers(0, 30, n)] for n in rng.integers(1, 12, 40)]
    alone = [ask(client, concepts=[chain], steps=2)["predictions"] for chain in asked]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda c: ask(client, concepts=[c], steps=2), asked))
    whole = ask(client, concepts=asked * 3, steps=2)["predictions"]  # more than one batch holds
    for one, other, third in zip(alone, together, whole, strict=False):
        for found in (other["predictions"][0], third):
            for a, b in zip(one[0]["steps"], found["steps"], strict=True):
                assert [n["concept"] for n in a["next"]] == [n["concept"] for n in b["next"]]


def test_a_model_with_tmd_takes_vectors_or_codes(tmp_path: Path) -> None:
    source = write_model(tmp_path, ModelConfig(**TINY, d_tmd=16))
    with client_of(source) as client:
        codes = [[1, 2, 3]]
        by_codes = ask(client, concepts=[WORDS[:3]], codes=codes)
        by_vector = ask(client, concepts=[WORDS[:3]], tmd=dense(np.array(codes)).tolist())
        unknown = ask(client, concepts=[WORDS[:3]])
        rows = client.service.serving.words.bank[:3][None].tolist()
        assert by_codes == by_vector == ask(client, concepts=[WORDS[:3]], codes=codes)
        assert (
            ask(client, vectors=rows, codes=codes)["predictions"][0]["steps"]
            == (by_codes["predictions"][0]["steps"])
        )
        assert unknown["predictions"] != by_codes["predictions"]
        for wrong in ({"codes": [[1, 2]]}, {"codes": [[99, 0, 0]]}, {"tmd": [[1.0] * 15]}):
            got = client.post("/v1/predict", json={"concepts": [WORDS[:3]], **wrong})
            assert got.status_code == 400, got.text


def test_without_concepts_only_vectors_can_be_asked(tmp_path: Path) -> None:
    source = write_model(tmp_path)
    with client_of(FileSource(source.path)) as client:
        got = client.post("/v1/predict", json={"concepts": [["a"]]})
        assert got.status_code == 400
        assert "--data" in got.json()["detail"]
        answer = ask(client, vectors=vectors(1, 2).tolist(), top_k=0, return_vectors=True, steps=2)
        steps = answer["predictions"][0]["steps"]
        assert [step["next"] for step in steps] == [[], []]
        np.testing.assert_allclose(np.linalg.norm([s["vector"] for s in steps], axis=1), 1, 1e-5)
        assert client.get("/v1/concepts?q=a").status_code == 400


def test_concepts_are_looked_up(client: TestClient) -> None:
    got = client.get("/v1/concepts", params={"q": "CONCEPT É 1", "limit": 3}).json()
    assert got["concepts"] == ["concept é 1", "concept é 10", "concept é 11"]


def test_chains_of_like_length_are_computed_together() -> None:
    lengths = [3, 14, 3, 4, 13, 100, 3]
    groups = list(like_lengths(lengths))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        found = [lengths[i] for i in group]
        assert 1 - sum(found) / (max(found) * len(found)) <= 0.25
