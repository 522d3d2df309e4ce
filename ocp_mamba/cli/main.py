"""The group of all commands; the module of a command is imported when the command is called."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import click

from ocp_mamba.config import __version__
from ocp_mamba.redact import redact, redact_console
from ocp_mamba.system.cpu_info import widen_openblas

COMMANDS = (
    "ask",
    "benchmark",
    "compare",
    "data",
    "evaluate",
    "predict",
    "promote",
    "quality",
    "rollback",
    "runs",
    "serve",
    "sweep",
    "train",
    "transfer",
    "variants",
)
MODULES = {"benchmark": "variants", "quality": "variants", "rollback": "promote"}
"""The module that a command's function stands in, where that is not the one of its own name."""

TELEMETRY_VARIABLE = "MLFLOW_DISABLE_TELEMETRY"
"""MLflow's telemetry reports to a host outside, and its threads read the environment while MLflow
writes it, which can end the process. It is off unless the user has set this variable."""


class LazyGroup(click.Group):
    """Imports the module of a command when the command is called: some imports take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, in alphabetical order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command out of its module, or None."""
        if cmd_name not in COMMANDS:
            return None
        os.environ.setdefault(TELEMETRY_VARIABLE, "true")  # read when MLflow is imported
        module = MODULES.get(cmd_name, cmd_name)
        command = getattr(import_module(f"ocp_mamba.cli.{module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; an error's message shows no password."""
        redact_console()
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            error.message = redact(error.message)  # type: ignore[misc]  # click calls it final
            raise


@click.group(
    cls=LazyGroup,
    epilog="""
    \b
    Examples:
      ocp-mamba train --data ocp_training_9k.npz
      ocp-mamba train --help
    """,
)
@click.version_option(__version__, prog_name="ocp-mamba")
def main() -> None:
    """Train, evaluate and compare Mamba-2 latent vector models, tracked in MLflow."""
    widen_openblas()
