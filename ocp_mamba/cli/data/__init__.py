"""The commands under ``ocp-mamba data``: build, import, check and convert dataset files."""

from ocp_mamba.cli.data.commands import data

__all__ = ["data"]
