"""One training step: the model as it is trained, the floor below it, and its peers.

The floor is what no model of these layers can beat: the same linear layers with nothing between
them, forward, backward and the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks import timing
from benchmarks.frame import Cell, Goal, Result, Table
from ocp_mamba import errors
from ocp_mamba.baselines.neural import gru_of_size, transformer_of_size
from ocp_mamba.config import MODEL_SIZES, ModelConfig, TrainConfig
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
PLAIN, WHOLE, STACKS = "ocp_mamba, compile off", "ocp_mamba as the size small is trained", 3
WHOLE_FLOOR = "products alone, as the size small is trained"
REMEMBERED = 2_202
"""Concepts that a model remembers: the targets of the shipped dataset's train split."""
FLOOR_GOAL, PEER_GOAL = 1.3, 8.0


NOTE = (
    "One stack of 6 layers and the cosine loss throughout, for the peers' sake, but for the size "
    f"small: 3 stacks, {REMEMBERED:,} concepts remembered, and the softmax over them; its step "
    "takes {whole:.2f} times its own products. The mixers' weights are the same in the floor, in "
    "every ocp_mamba row of one stack and in transformers' Mamba2, whose plain torch path this is. "
    "Peak memory is what a step needs beyond weights and what was held before; first steps hold "
    "AdamW's state too. In all rows freed memory is kept for the next step, as in our training "
    "(`allocator`)."
)


class Products(NextVectorModel):
    """The linear layers of an `OCPMambaLVM` and nothing else; B, C, dt and the gate go nowhere.

    With what it remembers, the products that recalling and its gradient take come on top.
    """

    def __init__(self, model: OCPMambaLVM) -> None:
        super().__init__()
        c = model.config
        self.d_inner = c.d_inner
        widths = ((c.d_model, 2 * c.d_inner + 2 * c.d_state + c.nheads), (c.d_inner, c.d_model))
        self.stacks = nn.ModuleList()
        for theirs in model.stacks():
            stack = nn.ModuleList()
            for layer in theirs:
                inward, outward = (nn.Linear(*width, bias=False) for width in widths)
                inward.load_state_dict(layer.mixer.in_proj.state_dict())
                outward.load_state_dict(layer.mixer.out_proj.state_dict())
                stack.append(nn.ModuleList((inward, outward)))
            self.stacks.append(stack)
        self.output = nn.Linear(c.d_model, c.d_vector)
        self.remembered: Tensor | None = None
        if model.memory_head is not None and len(model.memory_head.memory):
            self.remembered = model.memory_head.memory

    def predict_members(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        predictions = []
        for stack in self.stacks:
            x = seq_vectors
            for inward, outward in stack:
                x = outward(inward(x)[..., : self.d_inner])
            predictions.append(self.output(x).to(seq_vectors.dtype))
        return torch.stack(predictions)

    def recall(self, members: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        if self.remembered is None:
            return members, None
        return (members @ self.remembered.T @ self.remembered).to(members.dtype), None


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
    known = {
        "vectors": bank[ids[:, :-1]],
        "lengths": torch.full((B,), L),
        "inputs": ids[:, :-1],
        "targets": ids[:, 1:],
        "mask": torch.ones(B, L, dtype=torch.bool),
        "chain_ids": torch.arange(B),
        "all_targets": ids[:, 1:].flatten(),
    }
    return Batch(**dict.fromkeys(Batch.__dataclass_fields__) | known)


def random_bank(rows: int) -> Tensor:
    """Return unit rows ``(rows, 768)``."""
    drawn = torch.randn(rows, 768, generator=torch.Generator().manual_seed(1))
    return nn.functional.normalize(drawn, dim=-1)


def stepper(
    model: NextVectorModel, batch: Batch, bank: Tensor, precision: str, compiled: bool
) -> Callable[[], object]:
    """Return a call that takes one step of the training loop's own.

    A model that remembers concepts learns by the default losses, all others by the cosine alone.
    """
    config, negative_pool = TrainConfig(precision=precision, infonce_weight=0.0), NO_NEGATIVES
    if model.memory_head is not None and len(model.memory_head.memory):
        config = TrainConfig(precision=precision)
        negative_pool = NegativePool(targets=torch.arange(len(bank)), remembered=True)
    model.train()
    state = TrainState(model, make_optimizer(model, config), precision, negative_pool)

    def step() -> None:
        cpu.use(compiled)
        train_step(state, batch, bank, 1e-6, config)

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
    config: ModelConfig, precision: str, bank: Tensor
) -> dict[str, tuple[NextVectorModel, str]]:
    """Return each model with its precision, by name; `PLAIN` alone runs without kernels."""
    torch.manual_seed(0)
    ours = build_model(config)
    size = ours.num_parameters()
    whole = build_model(replace(config, members=min(STACKS, config.n_layers)))
    assert whole.memory_head is not None
    whole.memory_head.remember(bank)
    found: dict[str, tuple[NextVectorModel, str]] = {
        FLOOR: (Products(ours), precision),
        OURS: (ours, precision),
        PLAIN: (_copy(ours), precision),
        WHOLE_FLOOR: (Products(whole), precision),
        WHOLE: (whole, precision),
        THEIRS: (transformers_mamba2(ours), "float32"),
        "Transformer of equal size": (transformer_of_size(config, size), precision),
        "GRU of equal size": (gru_of_size(config, size), precision),
    }
    if precision != "float32":
        found["ocp_mamba, float32"] = (_copy(ours), "float32")
        found[f"{THEIRS}, {precision}"] = (transformers_mamba2(ours), precision)
    try:
        found["mambapy Mamba-1"] = (mambapy_mamba(ours), precision)
    except ImportError as error:
        print(f"mambapy Mamba-1: not run ({error}); pip install -e '.[bench]'")
    return found


def _copy(model: OCPMambaLVM) -> OCPMambaLVM:
    copy = build_model(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def main(quick: bool) -> Result:
    """Time all contestants at each shape."""
    config = replace(MODEL_SIZES["small"], members=1, **{"n_layers": 1} if quick else {})
    bank = random_bank(REMEMBERED)
    precision = resolve_precision("auto", bank.device)
    compiled = kernels()
    models = contestants(config, precision, bank)
    tables, goals = [], []
    for name, (B, L) in SHAPES.items():
        batch = batch_of(B, L, bank)
        steps = {
            n: stepper(model, batch, bank, p, compiled and n != PLAIN)
            for n, (model, p) in models.items()
        }
        with freed_is_kept():
            peaks = {n: timing.peak_mib(step) for n, step in steps.items()}
            times = timing.rounds(
                steps, n_rounds=2 if quick else 12, warmup=0, limit_s=5 if quick else 30
            )
        floor, ours = times[FLOOR].best, times[OURS].best
        rows: list[dict[str, Cell]] = [
            {
                "step": n,
                "precision": models[n][1],
                "best ms": 1e3 * t.best,
                "median ms": 1e3 * t.median,
                "times the floor": t.best / floor,
                "times ours": t.best / ours,
                "vectors/s": round(B * L / t.best),
                "peak MiB": None if peaks[n] is None else round(peaks[n]),
                "parameters": models[n][0].num_parameters(),
            }
            for n, t in times.items()
        ]
        note = NOTE.format(whole=times[WHOLE].best / times[WHOLE_FLOOR].best)
        if not compiled:
            note += " **The kernels do not compile here: all ran eager.**"
        tables.append(Table(f"{name}: {B} x {L} vectors", rows, note))
        goals += _goals(name, ours / floor, times[THEIRS].best / ours)
    return Result(tables, goals)


def _goals(shape: str, over_floor: float, ahead: float) -> list[Goal]:
    return [
        Goal(
            f"{shape}: at most {FLOOR_GOAL} times the floor",
            f"{over_floor:.2f}",
            over_floor <= FLOOR_GOAL,
        ),
        Goal(
            f"{shape}: at least {PEER_GOAL:.0f} times faster than {THEIRS}",
            f"{ahead:.1f}",
            ahead >= PEER_GOAL,
        ),
    ]
