"""The model registry: versions registered once, their aliases, the model for people, loading back.

`register` makes versions, `candidate` and `aliases` move their aliases, `load` reads them.
"""

from ocp_mamba.tracking.registry.aliases import CANDIDATE, CHAMPION, MODEL_NAME, PREVIOUS
from ocp_mamba.tracking.registry.load import (
    load_registered,
    load_run_file,
    load_version,
    logged_model_id,
    version_artifacts,
    version_of_alias,
)
from ocp_mamba.tracking.registry.register import (
    REGISTERED,
    VERSION_METRICS,
    ModelVersion,
    register_best,
    register_once,
)

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "MODEL_NAME",
    "PREVIOUS",
    "REGISTERED",
    "VERSION_METRICS",
    "ModelVersion",
    "load_registered",
    "load_run_file",
    "load_version",
    "logged_model_id",
    "register_best",
    "register_once",
    "version_artifacts",
    "version_of_alias",
]
