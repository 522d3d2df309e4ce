"""Training: `fit` runs epochs of `train_step` over packed chains and keeps the best epoch.

It knows no tracker: ``on_epoch`` receives the result of every epoch and may raise to stop.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ocp_mamba import stats
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch, batches
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import NotFiniteError, TrainingError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.system.malloc import freed_is_kept
from ocp_mamba.training.alarms import Alarm, find_alarms
from ocp_mamba.training.capture.step import start_capture
from ocp_mamba.training.checkpointing import StateFiles
from ocp_mamba.training.compile import start_kernels
from ocp_mamba.training.distributed import ALONE, World
from ocp_mamba.training.history import EpochProgress, EpochRecord, is_finite
from ocp_mamba.training.lookup import fill_lookup
from ocp_mamba.training.negatives import build_negative_pool
from ocp_mamba.training.schedule import Plan, learning_rate, make_plan, mixup_of
from ocp_mamba.training.state import EpochResult, FitResult, TrainState

BETAS = (0.9, 0.95)
EPOCH_SEED_STRIDE = 1_000_003
SHOWN = ("next_vec_cosine", "retrieval_p1")
MAX_SKIPPED = 10
"""Steps in a row without finite numbers after which a training stops: it will not recover."""

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

    A step whose loss or gradient is not finite is counted, and changes no weight. All processes
    that share the batch skip it together, because the numbers are those of all of them.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    captured = state.capture.take(batch, lr)
    if captured is not None:
        state.step += 1
        return captured
    with torch.autocast(bank.device.type, torch.bfloat16, enabled=state.precision == "bf16"):
        losses = state.objective(batch, bank, config, state.negative_pool)
    (losses["total"] * state.world.size).backward()  # DDP averages the parts; they must be added
    norm = _clip(state.model, config.grad_clip)
    losses = state.world.all_reduce(losses)
    values = {name: loss.item() for name, loss in losses.items()} | {"grad_norm": norm}
    if is_finite(values):
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return values


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
    save_seconds: float = math.inf,
    on_resume: Callable[[Sequence[EpochResult]], None] | None = None,
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
            state to resume from, which stays there. Only an `OCPMambaLVM` has such files.
        resume: go on from ``<stem>.last.pt``, at the batch that follows it; after the last epoch
            there is nothing left to do. What rank 0 says counts, and rank 0 alone reads the files.
        save_seconds: write the state within an epoch too, each time so many seconds are over.
        on_resume: called once with the epochs that the state has, before training goes on. The
            model has the weights of the last step.
        on_epoch: called after each epoch; what it raises ends training and is not caught. Where
            the state was written right after an epoch, it is called for that epoch again.
        on_step: called after each optimizer step, on every rank; what it raises likewise.
        progress: show a progress bar on standard error.
        world: the processes that share each batch; all call this, and rank 0 alone validates,
            writes and calls ``on_epoch``.

    Raises:
        TrainingError: the train split is empty, or a model that has no ``.pt`` was given an output.
        ResumeError: there is nothing to resume that fits.
        NotFiniteError: `MAX_SKIPPED` steps in a row, all of an epoch, the weights or the
            predictions are not finite.
        OutputError: a file cannot be written.
    """
    if dataset.n_examples("train") == 0:
        raise TrainingError("the train split has no examples")
    if config.threads:
        torch.set_num_threads(config.threads)
    bank = torch.from_numpy(dataset.bank).to(next(model.parameters()).device)
    precision = resolve_precision(config.precision, bank.device)
    state = TrainState(model, make_optimizer(model, config), precision, world=world)
    state.negative_pool = build_negative_pool(dataset, config, model.memory_head).to(bank.device)
    if model.lookup is not None:
        fill_lookup(dataset, model.lookup, config.min_context)
    start_kernels(model, dataset, config)
    plan = make_plan(dataset, config)
    files = StateFiles(output, model, dataset, config)
    tell = on_epoch if world.main and on_epoch is not None else _tell_nobody
    best_weights = None
    if world.broadcast(lambda: resume):
        saved = world.broadcast(files.load)
        saved.put_into(state)
        best_weights = saved.best_weights
        results = [_result(state, config, n, files) for n in range(1, len(state.history) + 1)]
        if on_resume is not None and world.main:
            on_resume(results)
        if results and state.progress is None:
            tell(results[-1])
    state.capture = start_capture(
        model, state.optimizer, precision, state.negative_pool, bank, config, dataset, world.size
    )
    bar = _ProgressBar(state, plan, progress and world.main)
    save = _Saver(files, state, save_seconds if world.main else math.inf)
    while not (state.history and state.history[-1].is_last):
        record = _run_epoch(state, dataset, bank, config, plan, validate, bar, save, on_step)
        state.history.append(record)
        state.progress = None
        result = _result(state, config, len(state.history), files)
        bar.validated(record.val, result.alarms)
        if record.is_best:
            best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        if world.main:
            save.now()
        tell(result)
    bar.close()
    assert best_weights is not None
    assert state.best is not None
    model.load_state_dict(best_weights)
    return FitResult(
        history=state.history,
        best_epoch=state.best.epoch,
        best_cosine=state.best.val["next_vec_cosine"],
        stopped_early=len(state.history) < config.max_epochs,
        alarms=find_alarms(state.history, config),
        capture=str(state.capture),
    )


def _result(state: TrainState, config: TrainConfig, epochs: int, files: StateFiles) -> EpochResult:
    """The result of an epoch, given the number of epochs until and with it."""
    return EpochResult(
        **vars(state.history[epochs - 1]),
        max_epochs=config.max_epochs,
        model=state.model,
        learnt=files.learnt if state.world.main else None,
        alarms=find_alarms(state.history[:epochs], config),
    )


def _tell_nobody(result: EpochResult) -> None:
    """Stand in for ``on_epoch`` where there is none, and on all ranks but the first."""


def _run_epoch(
    state: TrainState,
    dataset: Dataset,
    bank: Tensor,
    config: TrainConfig,
    plan: Plan,
    validate: Validate,
    bar: _ProgressBar,
    save: _Saver,
    on_step: Callable[[], None] | None,
) -> EpochRecord:
    """Train one pass over the train split, validate, and decide whether it is best and last.

    An epoch that was begun before goes on at the batch after the last one.
    """
    epoch = len(state.history) + 1
    longest = plan.longest[epoch - 1]
    seed = config.seed * EPOCH_SEED_STRIDE + epoch
    progress = state.progress = state.progress or EpochProgress(epoch)
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
        first=progress.batches,
    ):
        progress.lr = learning_rate(state.step, plan.total_steps, config)
        values = train_step(state, batch, bank, progress.lr, config)
        progress.add(values, len(batch.all_targets))
        bar.step(epoch, values)
        if progress.skipped_in_a_row >= MAX_SKIPPED:
            raise _not_finite(
                state, f"{MAX_SKIPPED} steps in a row were skipped, the last: {values}"
            )
        if on_step is not None:
            on_step()
        save.if_due()
    train_seconds = progress.so_far()
    if progress.examples == 0:
        raise _not_finite(state, f"all {progress.skipped} steps of the epoch were skipped")
    state.model.eval()
    val = _validate(state, validate, bank.device)
    cosines = [r.val["next_vec_cosine"] for r in state.history] + [val["next_vec_cosine"]]
    is_best = state.best is None or cosines[-1] > state.best.val["next_vec_cosine"]
    since_best = 0 if is_best or state.best is None else epoch - state.best.epoch
    return EpochRecord(
        epoch=epoch,
        losses={name: total / progress.examples for name, total in progress.sums.items()},
        lr=progress.lr,
        seconds=progress.so_far(),
        examples_per_second=progress.examples / train_seconds,
        val=val,
        improvement_trend=stats.slope(cosines) if epoch >= config.trend_epochs else None,
        is_best=is_best,
        is_last=epoch == config.max_epochs or 0 < config.patience <= since_best,
        longest_chain=longest,
        time=time.time_ns() // 1_000_000,
        skipped_steps=progress.skipped + (state.history[-1].skipped_steps if state.history else 0),
    )


def _validate(state: TrainState, validate: Validate, device: torch.device) -> dict[str, float]:
    """Validate on rank 0, in the precision of training.

    Raises:
        NotFiniteError: the weights, a prediction or the cosine is not finite.
    """

    def on_main() -> dict[str, float]:
        if not weights_are_finite(state.model):
            raise NotFiniteError("the weights are not finite")
        val = validate(state.model)
        if not math.isfinite(val["next_vec_cosine"]):
            raise NotFiniteError(f"validation gave {val}")
        return val

    with torch.autocast(device.type, torch.bfloat16, enabled=state.precision == "bf16"):
        try:
            return state.world.broadcast(on_main)
        except NotFiniteError as error:
            raise _not_finite(state, str(error)) from error


def weights_are_finite(model: NextVectorModel) -> bool:
    """Return whether a model has no weight that is NaN or infinite."""
    return all(bool(p.isfinite().all()) for p in model.parameters())


def _not_finite(state: TrainState, what: str) -> NotFiniteError:
    progress = state.progress
    assert progress is not None
    return NotFiniteError(
        f"epoch {progress.epoch}, step {state.step}: {what}, at learning rate {progress.lr:g}; "
        "start again with a lower --lr, or with --precision float32"
    )


class _Saver:
    """Writes the state of a training, whenever so many seconds are over."""

    def __init__(self, files: StateFiles, state: TrainState, seconds: float) -> None:
        self._files, self._state, self._seconds = files, state, seconds
        self._written = time.monotonic()

    def now(self) -> None:
        self._files.write(self._state)
        self._written = time.monotonic()

    def if_due(self) -> None:
        """Write the state within an epoch, unless it is one that no training could go on from."""
        progress = self._state.progress
        if progress is None or time.monotonic() - self._written < self._seconds:
            return
        if progress.skipped_in_a_row == 0 and weights_are_finite(self._state.model):
            progress.so_far()
            self.now()


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
