"""The short forms of the campaigns that train or serve: kills, trainings at once, bad requests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = (
    "import json, sys, dataclasses\n"
    "from importlib import import_module\n"
    "results = import_module(f'soak.{sys.argv[1]}').run(True, lambda line: None)\n"
    "print(json.dumps([dataclasses.asdict(r) for r in results]))"
)
OURS = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
"""Without the store of another test, which MLflow writes into the environment."""


def short_form(campaign: str) -> list[dict[str, str]]:
    """The results of a campaign, in a process of its own: it forks, which a test must not."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, campaign], cwd=ROOT, capture_output=True, text=True,
        env={**OURS, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results: list[dict[str, str]] = json.loads(done.stdout.splitlines()[-1])
    return results


def test_a_killed_training_goes_on_as_if_nothing_had_happened() -> None:
    results = short_form("kill")
    assert [r["outcome"] for r in results] == ["survived"], results


@pytest.mark.slow
def test_trainings_at_once_keep_to_their_own() -> None:
    results = short_form("concurrency")
    assert [r["outcome"] for r in results] == ["survived"] * 3 + ["refused"], results


def test_bad_requests_lose_nothing() -> None:
    results = short_form("endpoint")
    assert len(results) > 100
    assert {r["outcome"] for r in results} == {"survived", "refused"}, results
