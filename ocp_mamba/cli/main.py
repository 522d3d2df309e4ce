"""The group of all commands; the module of a command is imported when the command is called."""

from __future__ import annotations

from importlib import import_module

import click

from ocp_mamba.config import __version__
from ocp_mamba.system.cpu_info import widen_openblas

COMMANDS = (
    "compare",
    "data",
    "evaluate",
    "promote",
    "quality",
    "rollback",
    "runs",
    "serve",
    "sweep",
    "train",
    "variants",
)
MODULES = {"rollback": "promote"}
"""The module that a command's function stands in, where that is not the one of its own name."""


class LazyGroup(click.Group):
    """Imports the module of a command when the command is called: some imports take seconds."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands' names, in alphabetical order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command out of its module, or None."""
        if cmd_name not in COMMANDS:
            return None
        module = MODULES.get(cmd_name, cmd_name)
        command = getattr(import_module(f"ocp_mamba.cli.{module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


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
