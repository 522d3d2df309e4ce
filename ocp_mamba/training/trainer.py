"""Training: `fit` runs epochs of `train_step` over packed chains and keeps the best epoch.

It knows no tracker: ``on_epoch`` receives the result of every epoch and may raise to stop.
"""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ocp_mamba import stats
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch, batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import TrainingError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.system.malloc import freed_is_kept
from ocp_mamba.training.alarms import Alarm, find_alarms
from ocp_mamba.training.captured import start_capture
from ocp_mamba.training.checkpointing import StateFiles
from ocp_mamba.training.compile import start_kernels
from ocp_mamba.training.distributed import ALONE, World
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.negatives import build_negative_pool
from ocp_mamba.training.schedule import Plan, learning_rate, make_plan, mixup_of
from ocp_mamba.training.state import EpochResult, FitResult, TrainState

BETAS = (0.9, 0.95)
EPOCH_SEED_STRIDE = 1_000_003
SHOWN = ("next_vec_cosine", "retrieval_p1")
TERMINAL_SECONDS, LOG_SECONDS = 0.1, 10.0
"""Seconds between two drawings of the progress bar, on a terminal and in a log file."""

Validate = Callable[[NextVectorModel], dict[str, float]]


def resolve_precision(requested: str, device: torch.device) -> str:
    """Return ``float32`` or ``bf16``; ``auto`` is bf16 where the hardware supports its products."""
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    capabilities = torch.cpu.get_capabilities()
    fast = capabilities.get("amx_bf16", False) or capabilities.get("avx512_bf16", False)
    return "bf16" if fast else "float32"


def make_optimizer(model: NextVectorModel, config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW; matrices take weight decay, biases, norms and state-space parameters none."""
    decay, no_decay = model.decay_groups()
    groups = [
        {"params": decay, "weight_decay": config.weight_decay},
        {"params": no_decay, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=BETAS, fused=True)


def train_step(
    state: TrainState, batch: Batch, bank: Tensor, lr: float, config: TrainConfig
) -> dict[str, float]:
    """One optimizer step; returns the loss terms and ``grad_norm`` (before clipping).

    Raises:
        TrainingError: the loss or the gradient is not finite.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    captured = state.capture.take(batch, lr)
    if captured is not None:
        _require_finite(captured, state, lr)
        state.step += 1
        return captured
    with torch.autocast(bank.device.type, torch.bfloat16, enabled=state.precision == "bf16"):
        losses = state.objective(batch, bank, config, state.negative_pool)
    (losses["total"] * state.world.size).backward()  # DDP averages the parts; they must be added
    norm = _clip(state.model, config.grad_clip)
    losses = state.world.all_reduce(losses)
    values = {name: loss.item() for name, loss in losses.items()} | {"grad_norm": norm}
    _require_finite(values, state, lr)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return values


def _require_finite(values: dict[str, float], state: TrainState, lr: float) -> None:
    """Raise `TrainingError` for a loss or a gradient that is not finite."""
    if not all(math.isfinite(v) for v in values.values()):
        raise TrainingError(
            f"step {state.step + 1}: {values} is not finite at learning rate {lr:g}; "
            "lower --lr or use --precision float32"
        )


def _clip(model: NextVectorModel, max_norm: float) -> float:
    """Scale the gradient down to ``max_norm`` where it is longer; returns its norm before.

    `clip_grad_norm_` would rewrite every gradient, also in the many steps that clip nothing.
    """
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if norm > max_norm:
        nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return float(norm)


@freed_is_kept()
def fit(
    model: NextVectorModel,
    dataset: Dataset,
    config: TrainConfig,
    *,
    validate: Validate,
    output: Path | None = None,
    resume: bool = False,
    on_epoch: Callable[[EpochResult], None] | None = None,
    on_step: Callable[[], None] | None = None,
    progress: bool = True,
    world: World = ALONE,
) -> FitResult:
    """Train a model on a dataset's train split and leave it with the best epoch's weights.

    The memory head of a model that has one is filled with the train split's targets first.

    Args:
        model: trained in place, on its own device.
        dataset: the model is trained on its train split.
        config: schedule, loss, seed, precision.
        validate: evaluates the model after each epoch, in the precision of training; must give
            ``next_vec_cosine``.
        output: where the best epoch's ``.pt`` is kept; beside it ``<stem>.last.pt`` holds the
            state to resume from until training ends. Only an `OCPMambaLVM` has such a file.
        resume: go on from ``<stem>.last.pt``.
        on_epoch: called after each epoch; what it raises ends training and is not caught.
        on_step: called after each optimizer step, on every rank; what it raises likewise.
        progress: show a progress bar on standard error.
        world: the processes that share each batch; all call this, and rank 0 alone validates,
            writes and calls ``on_epoch``.

    Raises:
        TrainingError: the train split is empty, the loss is not finite, there is nothing to
            resume that fits, or a model that has no ``.pt`` was given an output.
    """
    if dataset.n_examples("train") == 0:
        raise TrainingError("the train split has no examples")
    if config.threads:
        torch.set_num_threads(config.threads)
    bank = torch.from_numpy(dataset.bank).to(next(model.parameters()).device)
    precision = resolve_precision(config.precision, bank.device)
    state = TrainState(model, make_optimizer(model, config), precision, world=world)
    state.negative_pool = build_negative_pool(dataset, config, model.memory_head).to(bank.device)
    start_kernels(model, dataset, config)
    plan = make_plan(dataset, config)
    files = StateFiles(output, model, dataset, config)
    if resume:
        files.restore(state)
    best_weights = files.read_best() if resume else None
    state.capture = start_capture(
        model, state.optimizer, precision, state.negative_pool, bank, config, dataset, world.size
    )
    bar = _ProgressBar(state, plan, progress and world.main)
    while not (state.history and state.history[-1].is_last):
        record = _run_epoch(state, dataset, bank, config, plan, validate, bar, on_step)
        state.history.append(record)
        alarms = find_alarms(state.history, config)
        bar.validated(record.val, alarms)
        if record.is_best:
            best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if world.main:
            files.write(state)
        if on_epoch is not None and world.main:
            on_epoch(
                EpochResult(
                    **vars(record), max_epochs=config.max_epochs, model=model, alarms=alarms
                )
            )
    bar.close()
    assert best_weights is not None
    assert state.best is not None
    model.load_state_dict(best_weights)
    if world.main:
        files.finish()
    return FitResult(
        history=state.history,
        best_epoch=state.best.epoch,
        best_cosine=state.best.val["next_vec_cosine"],
        stopped_early=len(state.history) < config.max_epochs,
        alarms=find_alarms(state.history, config),
        capture=str(state.capture),
    )


def _run_epoch(
    state: TrainState,
    dataset: Dataset,
    bank: Tensor,
    config: TrainConfig,
    plan: Plan,
    validate: Validate,
    bar: _ProgressBar,
    on_step: Callable[[], None] | None,
) -> EpochRecord:
    """Train one pass over the train split, validate, and decide whether it is best and last."""
    epoch = len(state.history) + 1
    longest = plan.longest[epoch - 1]
    seed = config.seed * EPOCH_SEED_STRIDE + epoch
    sums: Counter[str] = Counter()
    examples, lr = 0, 0.0
    started = time.perf_counter()
    state.model.train()
    for batch in batches(
        dataset,
        "train",
        config.batch_size,
        bank=bank,
        shuffle_seed=seed,
        longest=longest,
        min_context=config.min_context,
        mixup=mixup_of(epoch, config),
        share=state.world.share,
    ):
        lr = learning_rate(state.step, plan.total_steps, config)
        values = train_step(state, batch, bank, lr, config)
        n = len(batch.all_targets)
        sums.update({name: value * n for name, value in values.items()})
        examples += n
        bar.step(epoch, values)
        if on_step is not None:
            on_step()
    train_seconds = time.perf_counter() - started
    state.model.eval()
    with torch.autocast(bank.device.type, torch.bfloat16, enabled=state.precision == "bf16"):
        val = state.world.broadcast(lambda: validate(state.model))
    cosines = [r.val["next_vec_cosine"] for r in state.history] + [val["next_vec_cosine"]]
    is_best = state.best is None or cosines[-1] > state.best.val["next_vec_cosine"]
    since_best = 0 if is_best or state.best is None else epoch - state.best.epoch
    return EpochRecord(
        epoch=epoch,
        losses={name: total / examples for name, total in sums.items()},
        lr=lr,
        seconds=time.perf_counter() - started,
        examples_per_second=examples / train_seconds,
        val=val,
        improvement_trend=stats.slope(cosines) if epoch >= config.trend_epochs else None,
        is_best=is_best,
        is_last=epoch == config.max_epochs or 0 < config.patience <= since_best,
        longest_chain=longest,
    )


class _ProgressBar:
    """One tqdm bar over all steps: loss, metrics of the last validation, alarms, time left."""

    def __init__(self, state: TrainState, plan: Plan, enabled: bool) -> None:
        self._epochs = len(plan.steps)
        self._shown: dict[str, str] = {}
        self._bar = tqdm(
            total=plan.total_steps,
            initial=state.step,
            unit="step",
            mininterval=TERMINAL_SECONDS if sys.stderr.isatty() else LOG_SECONDS,
            disable=not enabled,
        )

    def step(self, epoch: int, losses: dict[str, float]) -> None:
        self._bar.set_description(f"epoch {epoch}/{self._epochs}", refresh=False)
        self._bar.set_postfix({"loss": f"{losses['total']:.4f}"} | self._shown, refresh=False)
        self._bar.update()

    def validated(self, val: dict[str, float], alarms: Sequence[Alarm]) -> None:
        self._shown = {f"val_{k}": f"{v:.4f}" for k, v in val.items() if k in SHOWN}
        for kind in {alarm.kind for alarm in alarms}:
            self._shown[kind.upper()] = " ".join(a.short for a in alarms if a.kind == kind)

    def close(self) -> None:
        self._bar.close()
