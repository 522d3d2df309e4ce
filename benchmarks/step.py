"""One new vector of one sequence: the step beside the floor of reading its weights, and its peers.

The floor is the quickest that this machine reads as many bytes: a sum over them, with the same
threads. A p50 is the median of rounds in which all contestants take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import timing
from benchmarks.frame import Cell, Goal, Result, Table
from benchmarks.train_step import REMEMBERED, random_bank, transformers_mamba2
from ocp_mamba.baselines.neural import (
    GRUBaseline,
    TransformerBaseline,
    TransformerLayer,
    gru_of_size,
    positions,
    transformer_of_size,
)
from ocp_mamba.config import MODEL_SIZES, ModelConfig
from ocp_mamba.model.build import build_model
from ocp_mamba.model.compiled_step import FastStep, fast_step
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.quantize import WEIGHTS, quantize, weight_bytes

FLOOR_GOAL, FLAT_GOAL = 1.5, 1.2
SEEN = (10, 1_000, 10_000)
RECOMPUTED = 1_000
"""The longest context that the slow readers are given: they take minutes for more."""
ROUNDS = 60

Step = Callable[[], Tensor]


def prefilled(model: OCPMambaLVM, seen: int) -> Callable[[Tensor], Tensor]:
    """Return the plain step after a context of ``seen`` vectors."""
    cache = model.allocate_inference_cache(1)
    model.prefill(torch.randn(1, seen, 768), None, cache)
    return lambda vector: model.step(vector, None, cache)


def compiled(model: OCPMambaLVM) -> tuple[FastStep, float]:
    """Return the compiled step, and the seconds that compiling took."""
    started = time.perf_counter()
    fast = fast_step(model, model.allocate_inference_cache(1))
    return fast, time.perf_counter() - started


class CachedTransformer:
    """The Transformer baseline reading one vector, with keys and values of all before it kept."""

    def __init__(self, model: TransformerBaseline, seen: int) -> None:
        self.model, self.seen = model, seen
        heads, width = model.layers[0].heads, model.width
        shape = (1, heads, seen + 1, width // heads)
        self.keys = [torch.randn(shape) for _ in model.layers]
        self.values = [torch.randn(shape) for _ in model.layers]
        self.position = positions(seen + 1, width)[-1]

    def __call__(self, vector: Tensor) -> Tensor:
        """Return the prediction; the newest place of the cache is written again each time."""
        x = self.model.input(F.normalize(vector, dim=-1)) + self.position
        for layer, keys, values in zip(self.model.layers, self.keys, self.values, strict=True):
            x = self._layer(layer, x, keys, values)
        return F.normalize(self.model.output(self.model.norm(x)), dim=-1)

    @staticmethod
    def _layer(layer: TransformerLayer, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        q, k, v = layer.qkv(layer.norm_attention(x)).view(3, layer.heads, -1).unbind(0)
        keys[0, :, -1], values[0, :, -1] = k, v
        attended = F.scaled_dot_product_attention(q[None, :, None], keys, values)
        x = x + layer.project(attended.reshape(1, -1))
        return x + layer.network(layer.norm_network(x))

    def mib(self) -> float:
        """Size of the cache."""
        return sum(t.nbytes for t in (*self.keys, *self.values)) / timing.MIB


class SteppedGRU:
    """The GRU baseline reading one vector; its memory is one hidden state a layer."""

    def __init__(self, model: GRUBaseline) -> None:
        self.model, self.hidden = model, torch.zeros(model.gru.num_layers, 1, model.width)

    def __call__(self, vector: Tensor) -> Tensor:
        out, self.hidden = self.model.gru(F.normalize(vector, dim=-1)[:, None], self.hidden)
        return F.normalize(self.model.output(self.model.norm(out[:, 0])), dim=-1)


def theirs(model: OCPMambaLVM, seen: int) -> Callable[[Tensor], Tensor]:
    """Return transformers' Mamba2 with the model's weights and its own cache."""
    stack = transformers_mamba2(model).eval().stack
    read = stack(inputs_embeds=torch.randn(1, seen, 768), use_cache=True)
    cache = read.cache_params
    return lambda v: stack(inputs_embeds=v[:, None], cache_params=cache).last_hidden_state


def by_weights(model: OCPMambaLVM, quick: bool) -> tuple[Table, list[Goal], FastStep]:
    """The compiled step for each way of storing the weights, beside its floor."""
    vector, calls, seconds, sizes = torch.randn(1, 768), {}, {}, {}
    fast: dict[str, FastStep] = {}
    for weights in WEIGHTS[:1] if quick else WEIGHTS:
        packed = quantize(model, weights)
        fast[weights], seconds[weights] = compiled(packed)
        sizes[weights] = weight_bytes(packed)
        bytes_ = torch.zeros(sizes[weights] // 4)
        calls[weights] = lambda step=fast[weights]: step(vector)
        calls[f"floor {weights}"] = lambda b=bytes_: b.sum()
    plain_step = prefilled(model, 10)
    calls["plain"] = lambda: plain_step(vector)
    times = timing.rounds(calls, n_rounds=5 if quick else 4 * ROUNDS, warmup=5, limit_s=30)
    rows: list[dict[str, Cell]] = []
    for weights in fast:
        step, floor = times[weights], times[f"floor {weights}"]
        rows.append(
            {
                "weights": weights,
                "MiB": sizes[weights] / timing.MIB,
                "floor p50 ms": 1e3 * floor.median,
                "step p50 ms": 1e3 * step.median,
                "p50 over floor": step.median / floor.median,
                "floor best ms": 1e3 * floor.best,
                "step best ms": 1e3 * step.best,
                "best over floor": step.best / floor.best,
                "GB/s": sizes[weights] / step.best / 1e9,
                "compiling s": seconds[weights],
            }
        )
    plain = times["plain"]
    note = (
        f"The plain step, not compiled, float32: p50 {1e3 * plain.median:.2f} ms, best "
        f"{1e3 * plain.best:.2f} ms. Compiling is quicker where torch's cache has it from before."
    )
    ratio = times["float32"].median / times["floor float32"].median
    goal = Goal(
        f"p50 of a step at most {FLOOR_GOAL} times reading the weights once (float32)",
        f"{ratio:.2f}",
        ratio <= FLOOR_GOAL,
    )
    return Table("A step by how the weights are stored", rows, note), [goal], fast["float32"]


@dataclass(frozen=True)
class Peers:
    """The models that take a vector each, made once."""

    ours: OCPMambaLVM
    fast: FastStep
    transformer: TransformerBaseline
    gru: GRUBaseline

    @classmethod
    def of(cls, model: OCPMambaLVM, fast: FastStep) -> Peers:
        size = model.num_parameters()
        transformer = transformer_of_size(model.config, size).eval()
        gru = gru_of_size(model.config, size).eval()
        assert isinstance(transformer, TransformerBaseline)
        assert isinstance(gru, GRUBaseline)
        return cls(model, fast, transformer, gru)


def by_context(peers: Peers, seen: int, quick: bool) -> list[dict[str, Cell]]:
    """Our step and its peers' after a context of ``seen`` vectors."""
    cached, stepped = CachedTransformer(peers.transformer, seen), SteppedGRU(peers.gru)
    vector, plain = torch.randn(1, 768), prefilled(peers.ours, seen)
    cache = peers.ours.allocate_inference_cache(1)
    state = sum(t.nbytes for layer in cache.layers for t in vars(layer).values()) / timing.MIB
    steps: dict[str, tuple[Step, float]] = {
        "ocp_mamba, compiled": (lambda: peers.fast(vector), state),
        "ocp_mamba, plain": (lambda: plain(vector), state),
        "GRU of equal size": (lambda: stepped(vector), stepped.hidden.nbytes / timing.MIB),
        "Transformer, keys and values kept": (lambda: cached(vector), cached.mib()),
    }
    if seen <= RECOMPUTED:
        context, other = torch.randn(1, seen + 1, 768), theirs(peers.ours, seen)
        again = lambda: peers.transformer.predict_all(context)[:, -1]  # noqa: E731
        steps["Transformer, all read again"] = (again, context.nbytes / timing.MIB)
        steps["transformers Mamba2, its cache"] = (lambda: other(vector), state)
    times = timing.rounds(
        {name: step for name, (step, _) in steps.items()},
        n_rounds=3 if quick else ROUNDS,
        warmup=2,
        limit_s=8,
    )
    ahead = times["ocp_mamba, compiled"]
    return [
        {
            "vectors before": seen,
            "one more vector": name,
            "p50 ms": 1e3 * t.median,
            "best ms": 1e3 * t.best,
            "best, times ours": t.best / ahead.best,
            "memory of the context, MiB": steps[name][1],
        }
        for name, t in times.items()
    ]


def flat(model: OCPMambaLVM, quick: bool) -> Goal:
    """Whether a step costs the same after 10 vectors as after 10,000, all taking turns."""
    vector = torch.randn(1, 768)
    steps = {n: prefilled(model, n) for n in SEEN}
    times = timing.rounds(
        {str(n): (lambda s=step: s(vector)) for n, step in steps.items()},
        n_rounds=3 if quick else ROUNDS,
        limit_s=10,
    )
    best = [t.best for t in times.values()]
    ratio = max(best) / min(best)
    return Goal(
        f"a step costs the same after {' or '.join(f'{n:,}' for n in SEEN)} vectors: dearest over "
        f"cheapest at most {FLAT_GOAL}",
        f"{ratio:.2f}",
        ratio <= FLAT_GOAL,
    )


@torch.no_grad()
def main(quick: bool) -> Result:
    """Time the step by weights, then beside its peers after contexts of several lengths."""
    torch.manual_seed(0)
    size = MODEL_SIZES["small"]
    config: ModelConfig = replace(size, n_layers=1) if quick else size
    model = build_model(config).eval()
    assert model.memory_head is not None
    model.memory_head.set_memory(random_bank(REMEMBERED))
    table, goals, fast = by_weights(model, quick)
    peers = Peers.of(model, fast)
    rows = [row for seen in SEEN for row in by_context(peers, seen, quick)]
    note = (
        f"float32, batch 1. Reading all again, and transformers' Mamba2, are measured up "
        f"to {RECOMPUTED:,} vectors. The peers "
        "run as their libraries give them, not compiled."
    )
    return Result(
        [table, Table("One more vector, beside peers", rows, note)], [*goals, flat(model, quick)]
    )
