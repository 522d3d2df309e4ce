"""The pages for people, in a real browser; and what programs watch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pytest
import requests
from browser import HOW_TO_INSTALL, Browser, find_browser
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient
from PIL import Image
from services import Running, client_of, write_model

needs_browser = pytest.mark.skipif(find_browser() is None, reason=HOW_TO_INSTALL)
OUTSIDE = re.compile(r"(?:src|href|action)\s*=\s*[\"']?(?:https?:)?//|@import|url\(", re.IGNORECASE)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with Running(write_model(tmp_path_factory.mktemp("model"))) as found:
        yield found


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    program = find_browser()
    assert program
    return Browser(program, tmp_path_factory.mktemp("browser"))


def page_of(running: Running, *chain: str) -> str:
    return f"{running.url}/#{urlencode([('c', text) for text in chain])}"


@needs_browser
def test_the_page_shows_a_chain_and_what_comes_next(
    running: Running, browser: Browser, tmp_path: Path
) -> None:
    chain = ["concept é 1", "concept é 2", "concept é 7"]
    image = tmp_path / "page.png"
    document = browser.load(page_of(running, *chain), image, "1100,1150")
    [answer] = running.service.serving.words.predict([chain], 8)
    buttons = re.findall(
        r'<span class="text">(.*?)</span><span class="score">(.*?)</span>', document
    )
    wanted = [(n["concept"], f"{n['score']:.3f}") for n in answer["steps"][0]["next"]]
    assert buttons == wanted
    assert f"<b>tiny</b> version {running.service.serving.version}" in document
    assert document.count('class="chip"') == 3
    assert len(re.findall(r'<circle class="read"', document)) == 3
    assert len(re.findall(r'<circle class="maybe"', document)) == 8
    assert 'id="error" role="alert" hidden' in document
    with Image.open(image) as shown:
        pixels = np.asarray(shown.convert("RGB")).reshape(-1, 3)
    assert len(np.unique(pixels, axis=0)) > 200, "hardly anything is drawn"


ACTS = """<script>
const act = setInterval(() => {
  const next = document.querySelector("#next button"), typing = document.getElementById("type");
  if (next && document.querySelectorAll(".chip").length === 1) next.click();
  if (document.querySelectorAll(".chip").length !== 2 || document.querySelector(".busy")) return;
  clearInterval(act);
  typing.value = "concept é 2";
  typing.dispatchEvent(new Event("input"));
}, 50);
const choose = setInterval(() => {
  if (document.querySelectorAll("#found li").length < 2) return;
  clearInterval(choose);
  for (const key of ["ArrowDown", "ArrowDown", "Enter"])
    document.getElementById("type").dispatchEvent(new KeyboardEvent("keydown", {key}));
}, 50);
</script></body>"""


@needs_browser
def test_a_click_and_the_keyboard_go_on_with_the_chain(running: Running, browser: Browser) -> None:
    page = requests.get(f"{running.url}/").text.replace("</body>", ACTS)
    running.app.get("/probe")(lambda: HTMLResponse(page))
    probe = page_of(running, "concept é 1").replace("/#", "/probe#")
    document = browser.load(probe, settle_seconds=10)
    chips = re.findall(r'<span class="chip">(.*?)<button', document)
    [answer] = running.service.serving.words.predict([["concept é 1"]], 1)
    found = running.service.serving.words.vocabulary.search("concept é 2", 2)
    assert chips == ["concept é 1", answer["steps"][0]["next"][0]["concept"], found[1]]


@needs_browser
def test_the_page_says_what_is_wrong(running: Running, browser: Browser) -> None:
    document = browser.load(page_of(running, "nothing like it"))
    said = re.search(r'<section class="card" id="error" role="alert"><p>(.*?)</p>', document)
    assert said
    assert "unknown text" in said[1]
    assert "nearest" in said[1]


@needs_browser
def test_the_page_fits_a_phone(running: Running, browser: Browser, tmp_path: Path) -> None:
    image = tmp_path / "phone.png"
    browser.load(page_of(running, *["concept é 1"] * 9), image, "500,900")
    with Image.open(image) as shown:
        edge = np.asarray(shown.convert("RGB")).astype(int)[:, -6:]
    assert (np.abs(edge - edge[0, 0]) < 12).all(), "something sticks out at the right"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with client_of(write_model(tmp_path_factory.mktemp("other"))) as found:
        yield found


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_pages_load_nothing_from_elsewhere(client: TestClient, path: str) -> None:
    got = client.get(path)
    assert got.status_code == 200
    assert not OUTSIDE.findall(got.text)
    assert "default-src 'none'" in got.headers["content-security-policy"]


def test_the_docs_page_lists_every_route(client: TestClient) -> None:
    page = client.get("/docs").text
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        for method in operations:
            assert f'<span class="method">{method.upper()}</span> {path}' in page
    assert "422" not in page


def test_mlflows_own_routes_answer_as_mlflow_does(client: TestClient) -> None:
    from mlflow.version import VERSION

    for path in ("/ping", "/health"):
        got = client.get(path)
        assert (got.status_code, got.text) == (200, "\n")
    assert client.get("/version").text == VERSION
