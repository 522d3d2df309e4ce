"""Names of run tags that several modules write or read."""

from __future__ import annotations

ENDED_REASON = "ended.reason"
"""Why a run ended early, or who ended it."""

OUTPUT = "training.output"
"""The ``--output`` of a training, on the machine that its process tags name."""

RESUMED_TIMES = "resumed.times"
"""How often a training was gone on with in its run."""

RESUMED_BY = "resumed.run"
"""On the run that ``mlflow run`` made for a resumption: the run that goes on in its place."""

DIGEST = "checkpoint.sha256"
"""Of a LoggedModel and of a version: the digest of the ``.pt`` that it was made of."""

BUNDLE = "bundle.sha256"
"""Of a LoggedModel and of a version: the digest of the manifest of its bundle."""

MAX_TAG_CHARACTERS = 5000
"""A store refuses longer tags."""

PARENT = "mlflow.parentRunId"
"""MLflow's own: the run under which the UI shows a nested run."""

NOTE = "mlflow.note.content"
"""The description, in Markdown, of a run, an experiment or a model of an epoch."""
