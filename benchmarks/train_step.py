"""One training step: the model as it is trained, the floor below it, and its peers.

The floor is what no model of these layers can beat: the same linear layers with nothing between
them, forward, backward and the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.frame import Cell, Goal, Table
from benchmarks.models import HEDGED, SINGLE, hedged_model, hedged_training
from benchmarks.run import Run
from ocp_mamba import errors
from ocp_mamba.baselines.neural import gru_of_size, transformer_of_size
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.batches import Batch
from ocp_mamba.kernels import cpu
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.system.malloc import freed_is_kept
from ocp_mamba.training.negatives import NO_NEGATIVES, NegativePool
from ocp_mamba.training.state import TrainState
from ocp_mamba.training.trainer import make_optimizer, resolve_precision, train_step

SHAPES = {"short chains": (64, 14), "long chains": (2, 512)}
FLOOR, OURS, THEIRS = "products alone (floor)", "ocp_mamba", "transformers Mamba2"
PLAIN = "ocp_mamba, compile off"
WHOLE, WHOLE_FLOOR = f"ocp_mamba, preset {HEDGED}", f"products alone, preset {HEDGED}"
PEERS = ("Transformer of equal size", "GRU of equal size")
FLOAT32, MAMBAPY = "ocp_mamba, float32", "mambapy Mamba-1"
TARGETS = 2_202
"""Concepts that InfoNCE tells a target from: the targets of the shipped dataset's train split."""
FLOOR_GOAL, PEER_GOAL = 1.3, 8.0

NOTE = (
    "All rows are one stack of 6 layers and the cosine loss, which is the default training, except "
    f"for the preset {HEDGED}: it has several stacks, a memory head with {TARGETS:,} concepts and "
    "InfoNCE; its step takes {whole} times its own products. The weights of the mixers are the "
    "same in the floor, in every ocp_mamba row of one stack and in transformers' Mamba2, whose "
    "plain torch path this is. Peak memory is what a step needs beyond the weights and what was "
    "held before; first steps hold AdamW's state too. In all rows freed memory is kept for the "
    "next step, as in our training (`system.malloc`)."
)


class Products(NextVectorModel):
    """The linear layers of an `OCPMambaLVM` and nothing else; B, C, dt and the gate go nowhere.

    For a model with a memory head, the products of reading the memory are added.
    """

    def __init__(self, model: OCPMambaLVM) -> None:
        super().__init__()
        c = model.config
        self.d_inner = c.d_inner
        widths = ((c.d_model, 2 * c.d_inner + 2 * c.d_state + c.nheads), (c.d_inner, c.d_model))
        self.stacks = nn.ModuleList()
        layers = iter(model.layers)
        for depth in c.depths:
            stack = nn.ModuleList()
            for layer in islice(layers, depth):
                inward, outward = (nn.Linear(*width, bias=False) for width in widths)
                inward.load_state_dict(layer.mixer.in_proj.state_dict())
                outward.load_state_dict(layer.mixer.out_proj.state_dict())
                stack.append(nn.ModuleList((inward, outward)))
            self.stacks.append(stack)
        self.output = nn.Linear(c.d_model, c.d_vector)
        self.memory: Tensor | None = None
        if model.memory_head is not None and len(model.memory_head.memory):
            self.memory = model.memory_head.memory

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        predictions = []
        for stack in self.stacks:
            x = seq_vectors
            for inward, outward in stack:
                x = outward(inward(x)[..., : self.d_inner])
            predictions.append(self.output(x).to(seq_vectors.dtype))
        return torch.stack(predictions)

    def read_memory(self, members: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        if self.memory is None:
            return members, None
        return (members @ self.memory.T @ self.memory).to(members.dtype), None


class Peer(NextVectorModel):
    """Another library's stack of layers between vectors, with our output layer."""

    def __init__(self, stack: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stack, self._run = stack, run
        self.output = nn.Linear(768, 768)

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        rows = self.output(self._run(self.stack, seq_vectors)).to(seq_vectors.dtype)
        return nn.functional.normalize(rows, dim=-1)[None]


def transformers_mamba2(model: OCPMambaLVM) -> Peer:
    """Return transformers' Mamba2 with the weights of a model's mixers (its plain torch path)."""
    from transformers import Mamba2Config, Mamba2Model

    c = model.config
    theirs = Mamba2Model(
        Mamba2Config(
            hidden_size=c.d_model, num_heads=c.nheads, head_dim=c.headdim, state_size=c.d_state,
            n_groups=1, conv_kernel=c.d_conv, expand=c.expand, chunk_size=c.chunk_size,
            num_hidden_layers=c.n_layers, use_bias=False, use_conv_bias=True, vocab_size=8,
            use_cache=False,
        )
    )  # fmt: skip
    for block, layer in zip(theirs.layers, model.layers, strict=True):
        block.mixer.load_state_dict(layer.mixer.state_dict(), strict=True)
    return Peer(theirs, lambda m, x: m(inputs_embeds=x, use_cache=False).last_hidden_state)


def mambapy_mamba(model: OCPMambaLVM) -> Peer:
    """Return mambapy's Mamba-1 of the same widths: its Mamba-2 needs mamba_ssm's CUDA kernels."""
    from mambapy.mamba import Mamba, MambaConfig

    c = model.config
    config = MambaConfig(
        d_model=c.d_model, n_layers=c.n_layers, d_state=c.d_state, expand_factor=c.expand,
        d_conv=c.d_conv,
    )  # fmt: skip
    return Peer(Mamba(config), lambda m, x: m(x))


def batch_of(B: int, L: int, bank: Tensor) -> Batch:
    """Return B full chains of L + 1 random concepts of the bank."""
    ids = torch.randint(len(bank), (B, L + 1), generator=torch.Generator().manual_seed(0))
    ids, device = ids.to(bank.device), bank.device
    known = {
        "vectors": bank[ids[:, :-1]],
        "lengths": torch.full((B,), L, device=device),
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": torch.ones(B, L, dtype=torch.bool, device=device),
        "chain_ids": torch.arange(B, device=device),
        "all_targets": ids[:, 1:].flatten(),
    }
    return Batch(**dict.fromkeys(Batch.__dataclass_fields__) | known)


def random_bank(rows: int) -> Tensor:
    """Return unit rows ``(rows, 768)``."""
    drawn = torch.randn(rows, 768, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(drawn, dim=-1)


@dataclass(frozen=True)
class Contestant:
    """A model and how it is trained."""

    model: NextVectorModel
    config: TrainConfig
    precision: str
    kernels: bool = True


def stepper(one: Contestant, batch: Batch, bank: Tensor, kernels: bool) -> Callable[[], object]:
    """Return a call that takes one step of the training loop's own.

    InfoNCE, where the config has it, tells a target from all rows of the bank.
    """
    negative_pool = NO_NEGATIVES
    if one.config.infonce_weight:
        head = one.model.memory_head
        is_memory = head is not None and len(head.memory) == len(bank)
        negative_pool = NegativePool(targets=torch.arange(len(bank)), is_memory=is_memory)
    one.model.train()
    optimizer = make_optimizer(one.model, one.config)
    state = TrainState(one.model, optimizer, one.precision, negative_pool)

    def step() -> None:
        cpu.use(kernels and one.kernels)
        train_step(state, batch, bank, 1e-6, one.config)

    return step


def kernels() -> bool:
    """Whether the compiled kernels run here; says so where they do not."""
    try:
        cpu.use(True)
    except errors.CompileError as error:
        print(f"compiled kernels: not run ({error})")
        return False
    return True


def contestants(
    config: ModelConfig, hedged: ModelConfig, precision: str, bank: Tensor
) -> dict[str, Contestant | str]:
    """Return each contestant by name, the most important first; text says why one cannot run."""
    torch.manual_seed(0)
    ours = build_model(config)
    size = ours.num_parameters()
    whole = build_model(hedged)
    if whole.memory_head is not None:
        whole.memory_head.set_memory(bank)
    preset = hedged_training(TrainConfig(precision=precision))

    def cosine(model: NextVectorModel, kind: str = precision, **how: bool) -> Contestant:
        return Contestant(model, TrainConfig(precision=kind, infonce_weight=0.0), kind, **how)

    found: dict[str, Contestant | str] = {
        FLOOR: cosine(Products(ours)),
        OURS: cosine(ours),
        WHOLE_FLOOR: Contestant(Products(whole), preset, precision),
        WHOLE: Contestant(whole, preset, precision),
        PLAIN: cosine(_copy(ours), kernels=False),
        THEIRS: cosine(transformers_mamba2(ours), "float32"),
        PEERS[0]: cosine(transformer_of_size(config, size)),
        PEERS[1]: cosine(gru_of_size(config, size)),
    }
    if precision != "float32":
        found[FLOAT32] = cosine(_copy(ours), "float32")
        found[f"{THEIRS}, {precision}"] = cosine(transformers_mamba2(ours))
    try:
        found[MAMBAPY] = cosine(mambapy_mamba(ours))
    except ImportError as error:
        found[MAMBAPY] = f"{error}; pip install -e '.[bench]'"
    return found


def _copy(model: OCPMambaLVM) -> OCPMambaLVM:
    copy = build_model(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def main(run: Run) -> None:
    """Time all contestants at each shape."""
    config = replace(SINGLE, n_layers=1) if run.quick else SINGLE
    bank = random_bank(TARGETS)
    precision = resolve_precision("auto", bank.device)
    compiled = kernels()
    models = contestants(config, hedged_model(run.quick), precision, bank)
    declared = [
        (
            run.table(f"{name}: {B} x {L} vectors", [{"step": n} for n in models]),
            run.goal(f"{name}: at most {FLOOR_GOAL} times the floor"),
            run.goal(f"{name}: at least {PEER_GOAL:.0f} times faster than {THEIRS}"),
        )
        for name, (B, L) in SHAPES.items()
    ]
    for (B, L), (table, *goals) in zip(SHAPES.values(), declared, strict=True):
        measure(run, models, batch_of(B, L, bank), bank, compiled, table, goals)


def measure(
    run: Run,
    models: dict[str, Contestant | str],
    batch: Batch,
    bank: Tensor,
    compiled: bool,
    table: Table,
    goals: list[Goal],
) -> None:
    """Time all contestants on one batch, and fill in the table and its goals."""
    able = {n: one for n, one in models.items() if isinstance(one, Contestant)}
    steps = {n: stepper(one, batch, bank, compiled) for n, one in able.items()}
    with freed_is_kept():
        peaks = run.peaks(steps)
        times = run.rounds(
            steps, n_rounds=2 if run.quick else 12, warmup=0, limit_s=5 if run.quick else 30
        )
    best = {n: t.best for n, t in times.items()}
    for row, (n, one) in zip(table.rows, models.items(), strict=True):
        if not isinstance(one, Contestant):
            run.skip(row, one)
        elif n in times:
            peak = peaks[n]
            cells: dict[str, Cell] = {
                "precision": one.precision,
                "best ms": 1e3 * best[n],
                "median ms": 1e3 * times[n].median,
                "times the floor": timing.ratio(best, n, FLOOR),
                "times ours": timing.ratio(best, n, OURS),
                "vectors/s": round(batch.inputs.numel() / best[n]),
                "peak MiB": None if peak is None else round(peak),
                "parameters": one.model.num_parameters(),
            }
            run.fill(row, cells)
    whole = timing.ratio(best, WHOLE, WHOLE_FLOOR)
    table.note = NOTE.format(whole="(not run)" if whole is None else f"{whole:.2f}")
    if not compiled:
        table.note += " **The kernels do not compile here: all ran without them.**"
    over_floor, ahead = timing.ratio(best, OURS, FLOOR), timing.ratio(best, THEIRS, OURS)
    if over_floor is not None:
        run.reach(goals[0], f"{over_floor:.2f}", over_floor <= FLOOR_GOAL)
    if ahead is not None:
        run.reach(goals[1], f"{ahead:.1f}", ahead >= PEER_GOAL)
    run.save()
