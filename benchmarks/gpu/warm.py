"""Compile what the stage `training` needs into caches on the disk, beside the stages before it.

mamba_ssm's Triton kernels are tried in many configurations when they are first called, which takes
a minute or two, and so does torch's compiler.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from benchmarks.gpu.place import Place
from benchmarks.gpu.steps import captured_call, plain_call, with_their_mixers
from benchmarks.gpu.training import CONFIG
from benchmarks.run import Run
from benchmarks.train_step import batch_of, random_bank
from ocp_mamba.model.build import build_model


def main(run: Run, place: Place) -> None:
    """Take a step with mamba_ssm's blocks on short chunks, and a compiled one of ours."""
    step_of_theirs(place, 2 * place.config.chunk_size)
    bank = random_bank(50).to(place.device)
    batch = batch_of(*place.shapes["short chains"], bank)
    model = build_model(place.config).to(place.device)
    captured_call(model, replace(CONFIG, compile="on"), "bf16", batch, bank)()


def step_of_theirs(place: Place, length: int) -> None:
    """Take a step with mamba_ssm's blocks, and one of ours, on chains of a length."""
    bank = random_bank(50).to(place.device)
    torch.manual_seed(0)
    model = build_model(place.config).to(place.device)
    for one in (with_their_mixers(model, place, length), model):
        plain_call(one, CONFIG, "bf16", batch_of(1, length, bank), bank)()
