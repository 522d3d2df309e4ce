"""Clients that ask a service without a pause, while something happens to it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import requests
from services import LIMIT_S


def wait_for(condition: Callable[[], bool], what: str) -> float:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() < begun + LIMIT_S, f"no {what} within {LIMIT_S} s"
        time.sleep(0.02)
    return time.monotonic() - begun


class OverHttp:
    """A service's address, asked by connections that are kept, one a thread."""

    def __init__(self, url: str) -> None:
        self._url, self._of_thread = url, threading.local()

    def _session(self) -> requests.Session:
        if not hasattr(self._of_thread, "session"):
            self._of_thread.session = requests.Session()
        return self._of_thread.session

    def post(self, path: str, **given: Any) -> requests.Response:
        return self._session().post(self._url + path, **given)

    def get(self, path: str) -> requests.Response:
        return self._session().get(self._url + path)


class Clients:
    """Threads that ask without a pause; each answer's version is compared with its content.

    ``client`` is a test client, or `OverHttp`; ``wanted`` has each version's next concepts.
    """

    def __init__(
        self, client: Any, number: int, asked: dict[str, Any], wanted: dict[str, list[str]]
    ) -> None:
        self.answers: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._client, self._asked, self._wanted = client, asked, wanted
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(number)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            got = self._client.post("/v1/predict", json=self._asked)
            if got.status_code != 200:
                self.wrong.append(f"{got.status_code} {got.text}")
                continue
            answer = got.json()
            version = answer["model"]["version"]
            found = [n["concept"] for n in answer["predictions"][0]["steps"][0]["next"]]
            if got.headers["x-model-version"] != version or found != self._wanted[version]:
                self.wrong.append(f"version {version} said {found}")
            self.answers[version] += 1

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
