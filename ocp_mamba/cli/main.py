"""The group of all commands; each one's module is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module

import click

from ocp_mamba.config import __version__
from ocp_mamba.system.cpu_info import widen_openblas

COMMANDS = ("compare", "data", "evaluate", "quality", "runs", "sweep", "train", "variants")
"""Each stands in the module of its name."""


class _Lazy(click.Group):
    """Opens a command's module when it is asked for: some import much."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        found = getattr(import_module(f"ocp_mamba.cli.{cmd_name}"), cmd_name)
        assert isinstance(found, click.Command)
        return found


@click.group(cls=_Lazy)
@click.version_option(__version__, prog_name="ocp-mamba")
def main() -> None:
    """Train a Mamba-2 latent vector model, and know from MLflow whether it is any good."""
    widen_openblas()
