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
from benchmarks.frame import Goal, Row, Table
from benchmarks.models import HEDGED, SINGLE, hedged_model
from benchmarks.run import Run
from benchmarks.train_step import TARGETS, random_bank, transformers_mamba2
from ocp_mamba.baselines.neural import (
    GRUBaseline,
    TransformerBaseline,
    TransformerLayer,
    gru_of_size,
    positions,
    transformer_of_size,
)
from ocp_mamba.config import ModelConfig
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


def stored(quick: bool) -> list[Row]:
    """Return the names of the rows of `by_weights`: a model, and how its weights are stored."""
    kinds = WEIGHTS[:1] if quick else WEIGHTS
    rows: list[Row] = [{"model": "default", "weights": weights} for weights in kinds]
    return [*rows, {"model": HEDGED, "weights": WEIGHTS[0]}]


def by_weights(
    run: Run, models: dict[str, OCPMambaLVM], table: Table, goal: Goal
) -> FastStep | None:
    """Time the compiled step of each row beside its floor; returns the default's in float32."""
    vector = torch.randn(1, 768)
    fast: dict[str, FastStep] = {}
    calls: dict[str, Callable[[], object]] = {}
    seconds: dict[str, float] = {}
    sizes: dict[str, int] = {}
    for name, weights in named(table):
        if run.over():
            break
        key, packed = f"{name} {weights}", quantize(models[name], weights)
        fast[key], seconds[key] = compiled(packed)
        sizes[key] = weight_bytes(packed)
        bytes_ = torch.zeros(sizes[key] // 4)
        calls[f"floor {key}"] = lambda b=bytes_: b.sum()
        calls[key] = lambda step=fast[key]: step(vector)
    plain_step = prefilled(models["default"], 10)
    calls["plain"] = lambda: plain_step(vector)
    times = run.rounds(calls, n_rounds=5 if run.quick else 4 * ROUNDS, warmup=5, limit_s=30)
    for row, (name, weights) in zip(table.rows, named(table), strict=True):
        key = f"{name} {weights}"
        if key not in times or f"floor {key}" not in times:
            continue
        step, floor = times[key], times[f"floor {key}"]
        run.fill(
            row,
            {
                "MiB": sizes[key] / timing.MIB,
                "floor p50 ms": 1e3 * floor.median,
                "step p50 ms": 1e3 * step.median,
                "p50 over floor": step.median / floor.median,
                "floor best ms": 1e3 * floor.best,
                "step best ms": 1e3 * step.best,
                "best over floor": step.best / floor.best,
                "GB/s": sizes[key] / step.best / 1e9,
                "compiling s": seconds[key],
            },
        )
        if row is table.rows[0]:
            ratio = step.median / floor.median
            run.reach(goal, f"{ratio:.2f}", ratio <= FLOOR_GOAL)
    if "plain" in times:
        plain = times["plain"]
        table.note = (
            f"The plain step of the default, not compiled, float32: p50 {1e3 * plain.median:.2f} "
            f"ms, best {1e3 * plain.best:.2f} ms. Compiling is faster where torch's cache holds "
            "the result of an earlier run."
        )
    return fast.get(f"default {WEIGHTS[0]}")


def named(table: Table) -> list[tuple[str, str]]:
    """Return the model and the weights of each row."""
    return [(str(row["model"]), str(row["weights"])) for row in table.rows]


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


OURS, PLAIN = "ocp_mamba, compiled", "ocp_mamba, plain"
GRU, CACHED = "GRU of equal size", "Transformer, keys and values kept"
RECOMPUTING, THEIRS = "Transformer, all read again", "transformers Mamba2, its cache"


def contestants(seen: int) -> tuple[str, ...]:
    """Return who reads one more vector after ``seen`` ones."""
    slow = (RECOMPUTING, THEIRS) if seen <= RECOMPUTED else ()
    return (OURS, PLAIN, GRU, CACHED, *slow)


def by_context(run: Run, peers: Peers, seen: int, rows: dict[str, Row]) -> None:
    """Time our step and its peers' after a context of ``seen`` vectors; rows by contestant."""
    cached, stepped = CachedTransformer(peers.transformer, seen), SteppedGRU(peers.gru)
    vector, plain = torch.randn(1, 768), prefilled(peers.ours, seen)
    cache = peers.ours.allocate_inference_cache(1)
    state = sum(t.nbytes for t in cache.tensors()) / timing.MIB
    steps: dict[str, tuple[Step, float]] = {
        OURS: (lambda: peers.fast(vector), state),
        PLAIN: (lambda: plain(vector), state),
        GRU: (lambda: stepped(vector), stepped.hidden.nbytes / timing.MIB),
        CACHED: (lambda: cached(vector), cached.mib()),
    }
    if RECOMPUTING in rows:
        context, other = torch.randn(1, seen + 1, 768), theirs(peers.ours, seen)
        again = lambda: peers.transformer.predict_all(context)[:, -1]  # noqa: E731
        steps[RECOMPUTING] = (again, context.nbytes / timing.MIB)
        steps[THEIRS] = (lambda: other(vector), state)
    times = run.rounds(
        {name: step for name, (step, _) in steps.items()},
        n_rounds=3 if run.quick else ROUNDS,
        warmup=2,
        limit_s=8,
    )
    best = {name: t.best for name, t in times.items()}
    for name, t in times.items():
        cells = {
            "p50 ms": 1e3 * t.median,
            "best ms": 1e3 * t.best,
            "best, times ours": timing.ratio(best, name, OURS),
            "memory of the context, MiB": steps[name][1],
        }
        run.fill(rows[name], cells)


def flat(run: Run, model: OCPMambaLVM, goal: Goal) -> None:
    """Measure whether a step costs the same after 10 vectors as after 10,000, in turns."""
    vector = torch.randn(1, 768)
    steps = {n: prefilled(model, n) for n in SEEN}
    times = run.rounds(
        {str(n): (lambda s=step: s(vector)) for n, step in steps.items()},
        n_rounds=3 if run.quick else ROUNDS,
        limit_s=10,
    )
    if len(times) == len(SEEN):
        best = [t.best for t in times.values()]
        ratio = max(best) / min(best)
        run.reach(goal, f"{ratio:.2f}", ratio <= FLAT_GOAL)


@torch.no_grad()
def main(run: Run) -> None:
    """Time the step by weights, then beside its peers after contexts of several lengths."""
    torch.manual_seed(0)
    config: ModelConfig = replace(SINGLE, n_layers=1) if run.quick else SINGLE
    models = {
        "default": build_model(config).eval(),
        HEDGED: build_model(hedged_model(run.quick)).eval(),
    }
    for model in models.values():
        if model.memory_head is not None:
            model.memory_head.set_memory(random_bank(TARGETS))
    table = run.table("A step by how the weights are stored", stored(run.quick))
    floor_goal = run.goal(
        f"p50 of a step at most {FLOOR_GOAL} times reading the weights once (default, float32)"
    )
    flat_goal = run.goal(
        f"a step costs the same after {' or '.join(f'{n:,}' for n in SEEN)} vectors: dearest over "
        f"cheapest at most {FLAT_GOAL}"
    )
    beside = run.table(
        "One more vector, beside peers",
        [{"vectors before": n, "one more vector": name} for n in SEEN for name in contestants(n)],
        "The default model, float32, batch 1. Reading all again, and transformers' Mamba2, are "
        f"measured up to {RECOMPUTED:,} vectors. The peers run as their libraries give them, not "
        "compiled.",
    )
    fast = by_weights(run, models, table, floor_goal)
    if fast is not None:
        peers = Peers.of(models["default"], fast)
        for seen in SEEN:
            if not run.over():
                rows = [row for row in beside.rows if row["vectors before"] == seen]
                by_context(run, peers, seen, {str(row["one more vector"]): row for row in rows})
    if not run.over():
        flat(run, models["default"], flat_goal)
