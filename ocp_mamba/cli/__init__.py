"""The ``ocp-mamba`` command: its modules read the flags, call a job and print.

Each command has a module of its own, which is imported when the command is called.
"""

from ocp_mamba.cli.main import main

__all__ = ["main"]
