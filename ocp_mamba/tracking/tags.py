"""Names of run tags that several modules write or read."""

from __future__ import annotations

ENDED_REASON = "ended.reason"
"""Why a run ended early, or who ended it."""

PARENT = "mlflow.parentRunId"
"""MLflow's own: the run under which the UI shows a nested run."""

NOTE = "mlflow.note.content"
"""The description, in Markdown, of a run, an experiment or a model of an epoch."""
