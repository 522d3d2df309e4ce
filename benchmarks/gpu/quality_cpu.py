"""The training of the stage `quality` on this machine's CPU, with the same seed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.gpu import quality
from benchmarks.gpu.place import Place
from benchmarks.run import Run
from ocp_mamba.data.load import load_dataset


def main(run: Run, place: Place) -> None:
    """Train and evaluate on the CPU."""
    title = quality.TITLE.format(epochs=place.epochs)
    table = run.table(
        place.title(f"{title}, on this machine's CPU"), [{"model": "trained on the CPU"}]
    )
    dataset = load_dataset(quality.DATA)
    with tempfile.TemporaryDirectory() as folder:
        model, cells = quality.trained(dataset, quality.on_cpu(place), Path(folder) / "model.pt")
    run.fill(table.rows[0], {**quality.evaluated(model, dataset), **cells})
