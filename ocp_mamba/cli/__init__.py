"""The ``ocp-mamba`` command: parse, call, print; a file a command, opened when it is asked for."""

from ocp_mamba.cli.main import main

__all__ = ["main"]
