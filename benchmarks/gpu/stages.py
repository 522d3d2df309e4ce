"""The stages in the order in which they run, the most important first, and their limits."""

from __future__ import annotations

from dataclasses import dataclass

TOTAL_S = 470.0
"""Seconds of all stages together: under eight minutes."""


@dataclass(frozen=True)
class Stage:
    """One process: ``benchmarks.gpu.NAME`` has its ``main(run, place)``.

    Attributes:
        name: of the module, the process and the JSON file.
        what: for a person.
        limit_s: seconds after which it is ended; what it has measured is kept.
        timed: whether it measures times: then nothing else may run beside it.
    """

    name: str
    what: str
    limit_s: float
    timed: bool = True


STAGES = (
    Stage("environment", "versions, parts of the backend, ceilings", 25, timed=False),
    Stage("equality", "kernels and captured steps against plain torch", 70, timed=False),
    Stage("gpu_tests", "pytest -m gpu", 50, timed=False),
    Stage("training", "the training step beside its peers", 190),
    Stage("quality", "the default training on the default dataset", 50),
    Stage("stepping", "one vector, as a CUDA graph", 35),
    Stage("quality_cpu", "the same training on this machine's CPU", 50),
)
BY_NAME = {stage.name: stage for stage in STAGES}
