"""A service follows its alias: nothing is dropped, and every answer says which version gave it."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from asking import Clients, OverHttp, wait_for
from servers import Server
from services import Running, client_of, point, register

from ocp_mamba.errors import RegistryError
from ocp_mamba.service.source import RegisteredSource

ASKED = {"concepts": [["concept é 1", "concept é 2"]], "top_k": 3}
SOURCE = RegisteredSource("models:/tiny@champion")


def serving(client: Any) -> str:
    return client.get("/ready").json()["model"]["version"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """A store of three versions, with the files of each in a folder of its number."""
    before, place = mlflow.get_tracking_uri(), tmp_path_factory.mktemp("versions")
    shutil.copyfile(empty_database, place / "mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow.db'}")
    for seed in (1, 2, 3):
        assert register(place / str(seed), seed=seed) == str(seed)
    yield place
    mlflow.set_tracking_uri(before)


@pytest.fixture
def versions(folder: Path) -> list[str]:
    """The first two versions, the first of which is champion."""
    point("champion", "1")
    return ["1", "2"]


def wanted_of(versions: list[str]) -> dict[str, list[str]]:
    """What each version answers."""
    found = {}
    for number in versions:
        [answer] = SOURCE.load(number).words.predict(ASKED["concepts"], 3)
        found[number] = [n["concept"] for n in answer["steps"][0]["next"]]
    assert found[versions[0]] != found[versions[1]]
    return found


def test_clients_are_answered_while_the_alias_moves(versions: list[str]) -> None:
    wanted = wanted_of(versions)
    with client_of(SOURCE, poll_seconds=0.05) as client:
        with Clients(client, 6, ASKED, wanted) as clients:
            for number in (versions[1], versions[0], versions[1]):
                before = clients.answers[number]
                point("champion", number)
                wait_for(lambda n=number: serving(client) == n, f"switch to version {number}")
                wait_for(lambda n=number, b=before: clients.answers[n] > b, "answer of it")
        assert clients.wrong == []
        assert set(clients.answers) == set(versions)
        text = client.get("/metrics").text
        assert "ocp_mamba_model_switches_total 3.0" in text
        assert f'ocp_mamba_model{{name="tiny",version="{versions[1]}"}} 1.0' in text
        assert f'version="{versions[0]}"' not in text


def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    versions: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "2" / "pyfunc" / "artifacts" / "model.pt"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100] + bytes(100))
    monkeypatch.setattr("ocp_mamba.service.follower.RETRY_SECONDS", 0.0)
    with client_of(SOURCE, poll_seconds=0.05) as client:
        point("champion", versions[1])
        wait_for(lambda: client.get("/ready").json()["problem"] is not None, "problem")
        ready = client.get("/ready")
        assert ready.status_code == 200
        assert ready.json()["model"]["version"] == versions[0]
        assert "weights-changed" in ready.json()["problem"]
        assert "ocp_mamba_follow_problem 1.0" in client.get("/metrics").text
        answer = client.post("/v1/predict", json=ASKED)
        assert answer.json()["model"]["version"] == versions[0]
        weights.write_bytes(whole)
        wait_for(lambda: serving(client) == versions[1], "switch once it can be loaded")
        assert client.get("/ready").json()["problem"] is None
        assert "ocp_mamba_follow_problem 0.0" in client.get("/metrics").text


def test_a_store_that_fails_leaves_the_version(versions: list[str]) -> None:
    with client_of(SOURCE, poll_seconds=0.05) as client:
        mlflow.MlflowClient().delete_registered_model_alias("tiny", "champion")
        wait_for(lambda: client.get("/ready").json()["problem"] is not None, "problem")
        assert "champion" in client.get("/ready").json()["problem"]
        assert client.post("/v1/predict", json=ASKED).status_code == 200
        point("champion", versions[1])
        wait_for(lambda: serving(client) == versions[1], "switch")


def test_sessions_go_on_with_their_version_over_one_switch(versions: list[str]) -> None:
    third = "3"
    with client_of(SOURCE, poll_seconds=0.05) as client:
        began = client.service.serving
        session = client.post("/v1/sessions", json={"concepts": ["concept é 1"]}).json()["session"]
        step = {"concept": "concept é 2"}
        moves = ((versions[1], 200), (versions[0], 200), (versions[1], 200), (third, 410))
        for number, status in moves:
            point("champion", number)
            wait_for(lambda n=number: serving(client) == n, "switch")
            got = client.post(f"/v1/sessions/{session}/step", json=step)
            assert got.status_code == status, got.text
            if status == 200:
                assert got.headers["x-model-version"] == versions[0]
            if number == versions[0]:
                assert client.service.serving is began, "a rollback loads nothing"
        assert f"version {versions[0]}, which began it, no longer serves" in got.json()["detail"]


def test_an_alias_that_does_not_exist_is_an_error_at_the_start(versions: list[str]) -> None:
    with pytest.raises(RegistryError, match=r"tiny@nobody: .*ocp-mamba promote"):
        RegisteredSource("models:/tiny@nobody").current()
    with pytest.raises(RegistryError, match="NAME@ALIAS"):
        RegisteredSource("models:/tiny")
    assert RegisteredSource(f"models:/tiny/{versions[1]}").current() == versions[1]
    assert not RegisteredSource("models:/tiny/1").follows


@pytest.mark.slow
def test_64_clients_for_a_minute_while_the_alias_moves_five_times(
    server: Server, tmp_path: Path
) -> None:
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(server.url)
    try:
        versions = [register(tmp_path / str(seed), seed=seed) for seed in (1, 2)]
        point("champion", versions[0])
        wanted = wanted_of(versions)
        delays = []
        with Running(SOURCE) as running:
            client = OverHttp(running.url)
            with Clients(client, 64, ASKED, wanted) as clients:
                for move in range(5):
                    time.sleep(10)
                    number = versions[(move + 1) % 2]
                    point("champion", number)
                    delays.append(wait_for(lambda n=number: serving(client) == n, "switch"))
                time.sleep(10)
            assert clients.wrong == []
            assert set(clients.answers) == set(versions)
        print(f"answers {dict(clients.answers)}, seconds to each switch {delays}")
        assert statistics.median(delays) < 5
    finally:
        mlflow.set_tracking_uri(before)
