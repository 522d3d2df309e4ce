"""What `warm` does, for mamba_ssm's blocks on the chunks of long sequences."""

from __future__ import annotations

from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import THEIR_CHUNK
from benchmarks.gpu.warm import step_of_theirs
from benchmarks.run import Run


def main(run: Run, place: Place) -> None:
    """Take one step."""
    step_of_theirs(place, 4 * place.config.chunk_size if place.stand_in else 2 * THEIR_CHUNK)
