"""The program as a person types it."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner

from ocp_mamba.cli.main import main


def run(*words: Any, code: int = 0) -> str:
    """What `ocp-mamba WORDS` prints; fails with its own exception or a wrong exit code."""
    result = CliRunner().invoke(main, [str(w) for w in words])
    if code == 0 and result.exception is not None:
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output
