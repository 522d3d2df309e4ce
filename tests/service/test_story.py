"""From a training to a rollback, over HTTP: a tracking server, a service process, and clients."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest
from asking import Clients, OverHttp, wait_for
from browser import HOW_TO_INSTALL, Browser, find_browser
from command import run
from PIL import Image
from registered import GOOD, learnable, train_version
from servers import Server, free_port

from ocp_mamba.config import TrainConfig, override
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.service.source import RegisteredSource
from ocp_mamba.tracking.registry.aliases import aliases_of
from ocp_mamba.tracking.store import use_store

pytestmark = pytest.mark.slow

NAME, CLIENTS, FOLLOWED_S = "story", 6, 5.0
BETTER = override(GOOD, max_epochs=40)


@dataclass(frozen=True)
class Registry:
    """A tracking server whose artifacts are behind it, with a champion."""

    url: str
    folder: Path
    dataset: Dataset

    def train(self, train: TrainConfig) -> str:
        """Train a model; returns the number of its version."""
        version = train_version(
            self.folder / "learnable.npz", self.folder, train, model_name=NAME
        ).version
        assert version is not None
        return str(version.version)

    def command(self, *words: str) -> str:
        """What `ocp-mamba` prints."""
        return run(*words, "--model-name", NAME, "--store", self.url)


@pytest.fixture(scope="module")
def registry(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    before, folder = mlflow.get_tracking_uri(), tmp_path_factory.mktemp("story")
    use_store(server.url)
    dataset = learnable()
    dataset.save(folder / "learnable.npz")
    found = Registry(server.url, folder, dataset)
    assert found.train(GOOD) == "1"
    said = found.command("promote")
    assert f"promoted: {NAME} version 1" in said
    yield found
    mlflow.set_tracking_uri(before)


@pytest.fixture
def service(registry: Registry) -> Iterator[Server]:
    """`ocp-mamba serve` as a process of its own, on the champion."""
    port = free_port()
    words = ["ocp_mamba", "serve", f"models:/{NAME}@champion", "--port", str(port)]
    found = Server([*words, "--store", registry.url], registry.folder, port)
    found.start()
    yield found
    found.kill()


def test_train_promote_serve_ask_promote_under_load_roll_back(
    registry: Registry, service: Server
) -> None:
    client, chain = OverHttp(service.url), registry.dataset.chain(0)[:4]
    texts = [str(registry.dataset.texts[row]) for row in chain]
    by_text = {"concepts": [texts], "top_k": 8}
    by_vectors = {"vectors": [registry.dataset.bank[chain].astype(float).tolist()], "top_k": 8}

    answer = client.post("/v1/predict", json=by_text).json()
    assert answer["model"] == {"name": NAME, "version": "1"}
    steps = client.post("/v1/predict", json=by_vectors).json()["predictions"][0]["steps"]
    given, found = answer["predictions"][0]["steps"][0]["next"], steps[0]["next"]
    assert [n["concept"] for n in given] == [n["concept"] for n in found]
    np.testing.assert_allclose([n["score"] for n in given], [n["score"] for n in found], atol=1e-5)
    session = client.post("/v1/sessions", json={"concepts": texts}).json()["session"]

    assert registry.train(BETTER) == "2"
    wanted = {}
    for number in ("1", "2"):
        version = RegisteredSource(f"models:/{NAME}/{number}").load(number)
        [predicted] = version.words.predict([texts], 8)
        wanted[number] = [n["concept"] for n in predicted["steps"][0]["next"]]
    assert wanted["1"] != wanted["2"]

    def serving() -> str:
        return client.get("/ready").json()["model"]["version"]

    with Clients(client, CLIENTS, by_text, wanted) as clients:
        assert f"promoted: {NAME} version 2" in registry.command("promote")
        promoted = wait_for(lambda: serving() == "2", "the better version")
        wait_for(lambda: clients.answers["2"] > CLIENTS, "answers of the better version")
        said = registry.command("rollback")
        before = clients.answers["1"]
        rolled_back = wait_for(lambda: serving() == "1", "the version before")
        wait_for(lambda: clients.answers["1"] > before + CLIENTS, "answers of the version before")
    assert clients.wrong == []
    assert f"champion of {NAME} is version 1 again" in said
    assert float(re.findall(r"changed in ([\d.]+) s", said)[0]) < FOLLOWED_S
    assert aliases_of(NAME) == {"candidate": "2", "champion": "1", "previous": "2"}
    step = client.post(f"/v1/sessions/{session}/step", json={"concept": texts[0]})
    assert (step.status_code, step.headers["x-model-version"]) == (200, "1")
    assert step.json()["position"] == len(texts) + 1
    print(f"answers {dict(clients.answers)}; followed in {promoted:.1f} s and {rolled_back:.1f} s")
    assert max(promoted, rolled_back) < FOLLOWED_S


@pytest.mark.skipif(find_browser() is None, reason=HOW_TO_INSTALL)
def test_the_registry_shows_the_card_of_a_promotion(registry: Registry, tmp_path: Path) -> None:
    program = find_browser()
    assert program
    browser, image = Browser(program, tmp_path), tmp_path / "card.png"
    page = f"{registry.url}/#/models/{NAME}/versions/1"
    document = browser.load(page, image, "1500,2000", settle_seconds=12)
    text = re.sub(r"<[^>]+>", " ", document)
    for wanted in ("every gate passes", "there was no champion", "not_collapsed"):
        assert wanted in text
    assert document.count("<table") >= 3, "the tables of the card are not drawn as tables"
    assert "<td>persistence&nbsp;&nbsp;</td>" in document, "the cells of the card touch each other"
    with Image.open(image) as shown:
        pixels = np.asarray(shown.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 200, "hardly anything is drawn"
