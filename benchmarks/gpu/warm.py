"""Compile mamba_ssm's Triton kernels for bf16 into Triton's cache, beside the first stages.

Each kernel is tried in many configurations when it is first called, which takes a minute or two.
The cache on the disk keeps what was compiled for the stages that come after.
"""

from __future__ import annotations

from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import plain_call, with_their_mixers
from benchmarks.gpu.training import CONFIG
from benchmarks.run import Run
from benchmarks.train_step import batch_of, random_bank
from ocp_mamba.model.build import build_model


def main(run: Run, place: Place) -> None:
    """Take one step with mamba_ssm's blocks and one with our model, both on long chains."""
    bank = random_bank(50).to(place.device)
    model = build_model(place.config).to(place.device)
    batch = batch_of(1, 2 * place.config.chunk_size, bank)
    for one in (with_their_mixers(model, place), model):
        plain_call(one, CONFIG, "bf16", batch, bank)()
    run.table(place.title("Triton's cache"), [])
