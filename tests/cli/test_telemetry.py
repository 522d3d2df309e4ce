"""MLflow's telemetry is off in our commands, unless the user says otherwise."""

from __future__ import annotations

import os
import sys

import pytest
from command import run

from ocp_mamba.cli.main import TELEMETRY_VARIABLE


@pytest.mark.parametrize(("users", "found"), [(None, "true"), ("false", "false")])
def test_telemetry_is_off_before_a_command_imports_mlflow(
    monkeypatch: pytest.MonkeyPatch, users: str | None, found: str
) -> None:
    monkeypatch.setenv(TELEMETRY_VARIABLE, users or "x")
    if users is None:
        monkeypatch.delenv(TELEMETRY_VARIABLE)
    seen: list[str | None] = []

    def imported(name: str) -> object:
        seen.append(os.environ.get(TELEMETRY_VARIABLE))
        return __import__(name, fromlist=["_"])

    monkeypatch.setattr(sys.modules["ocp_mamba.cli.main"], "import_module", imported)
    run("runs", "--help")
    assert seen[0] == found
