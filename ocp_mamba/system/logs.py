"""Warnings in the log, also after MLflow has made a new store in this process."""

from __future__ import annotations

import logging


def warn(log: logging.Logger, message: str, *values: object) -> None:
    """Log a warning.

    MLflow's migrations load a logging configuration that disables every logger that exists by
    then; this one is enabled again.
    """
    log.disabled = False
    log.warning(message, *values)
