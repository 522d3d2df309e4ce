"""Where the stages run: a GPU, or a CPU that stands in for one with small sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from benchmarks import timing
from benchmarks.frame import Goal
from benchmarks.models import SINGLE
from benchmarks.run import Run
from ocp_mamba.config import ModelConfig

STAND_IN = "STAND-IN ON A CPU, NO RESULT: "
"""Before the title of each table of a dry run."""


@dataclass(frozen=True)
class Place:
    """What the stages need to know of the machine.

    Attributes:
        device: that they compute on.
        stand_in: whether it is a CPU with small sizes, for a dry run: its numbers mean nothing.
        config: the model.
        shapes: chains and their vectors of a training step, by name.
        epochs: of the training of the stage `quality`.
        rounds: that are timed.
    """

    device: torch.device
    stand_in: bool
    config: ModelConfig
    shapes: Mapping[str, tuple[int, int]]
    epochs: int
    rounds: int

    def title(self, text: str) -> str:
        """Return a table's title, which says so where a CPU stands in."""
        return f"{STAND_IN}{text}" if self.stand_in else text

    def goal(self, run: Run, text: str) -> Goal:
        """Declare a goal, which says so where a CPU stands in."""
        return run.goal(self.title(text))

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def card(self) -> str:
        """Return the name of the GPU, or of what stands in for it."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return "stand-in: CPU"

    def timed(
        self,
        run: Run,
        calls: Mapping[str, Callable[[], object]],
        *,
        limit_s: float,
        repeat: int = 1,
    ) -> dict[str, timing.Timing]:
        """Time ``repeat`` calls at once until the device is done; returns the seconds of one."""

        def finished(call: Callable[[], object]) -> Callable[[], object]:
            def several() -> None:
                for _ in range(repeat):
                    call()
                self.wait()

            return several

        found = run.rounds(
            {name: finished(call) for name, call in calls.items()},
            n_rounds=self.rounds,
            warmup=1 if self.stand_in else 5,
            limit_s=limit_s,
        )
        return {
            name: timing.Timing(tuple(s / repeat for s in t.seconds)) for name, t in found.items()
        }


def find_place(stand_in: bool) -> Place:
    """Return the GPU, or the stand-in that was asked for.

    Raises:
        SystemExit: there is no GPU, and no stand-in was asked for.
    """
    if stand_in:
        config = ModelConfig(d_model=64, n_layers=2, headdim=16, chunk_size=16)
        shapes = {"short chains": (4, 14), "middle chains": (4, 32), "long chains": (2, 64)}
        return Place(torch.device("cpu"), True, config, shapes, epochs=1, rounds=2)
    if not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device; --stand-in tries everything on a CPU"
        )
    shapes = {"short chains": (64, 14), "middle chains": (64, 128), "long chains": (8, 2048)}
    return Place(torch.device("cuda"), False, replace(SINGLE), shapes, epochs=6, rounds=60)
