"""The training step as CUDA graphs: forward, backward, clipping and AdamW, started by one call.

On short chains a step on a GPU takes as long as its hundreds of small kernels take to start. A
graph starts all of them at once, but it needs the same shapes and addresses every time. So batches
are padded (`capture.padded`) to one of a few lengths, and each length has a graph of its own.
Losses and gradients are those of `trainer.train_step`, apart from rounding.

Not every training can be captured; `why_not` gives the reason in words.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ocp_mamba import errors
from ocp_mamba.config import TrainConfig
from ocp_mamba.data.batches import Batch
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.kernels.graphs import capture_graph
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.mamba2 import Mamba2Layer
from ocp_mamba.training.capture.padded import graph_length, padded, padded_losses
from ocp_mamba.training.negatives import MAX_CANDIDATES, NegativePool

COMPILED_CHUNKS = 2
"""Most chunks of a sequence whose layers torch's compiler fuses."""


def why_not(model: nn.Module, config: TrainConfig, device: torch.device, processes: int = 1) -> str:
    """Return why a training's steps cannot be captured, in a few words; empty where they can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    return why_not_static(model, config, processes)


def why_not_static(model: nn.Module, config: TrainConfig, processes: int = 1) -> str:
    """Return why a step with static shapes would not equal the plain one; empty where it does."""
    if config.compile == "off":
        return "asked for"
    if not isinstance(model, OCPMambaLVM):
        return "the model has no Mamba-2 layers"
    reasons = {
        "several processes share each batch": processes > 1,
        "dropout draws other numbers in a graph": model.config.dropout > 0,
        "relations were never captured": bool(model.config.relations),
        "hard negatives differ in number": config.hard_negatives > 0,
        "the candidates of InfoNCE are those of the batch": config.infonce_weight > 0
        and config.infonce_candidates == "batch",
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


@dataclass
class Capture:
    """Whether a training's steps are captured, and the step that does it."""

    step: CapturedStep | None = None
    why_not: str = "not asked for"

    def take(self, batch: Batch, lr: float) -> dict[str, float] | None:
        """Take a captured step; returns None where there is none, see `CapturedStep`."""
        if self.step is None or self.step.failed:
            return None
        return self.step(batch, lr)

    def __str__(self) -> str:
        """Return what ran, for a person and for the tracked run."""
        return f"off ({self.why_not})" if self.step is None else str(self.step)


def start_capture(
    model: NextVectorModel,
    optimizer: torch.optim.Optimizer,
    precision: str,
    negative_pool: NegativePool,
    bank: Tensor,
    config: TrainConfig,
    dataset: Dataset,
    processes: int,
) -> Capture:
    """Return the captured steps of a training, or why it has none; arguments as `CapturedStep`."""
    why = why_not(model, config, bank.device, processes)
    targets = negative_pool.targets
    if not why and targets is not None and len(targets) > MAX_CANDIDATES:
        why = "each batch draws the candidates of InfoNCE"
    if why:
        return Capture(None, why)
    lengths = dataset.lengths[dataset.chains_in("train")]
    rows, longest = min(config.batch_size, len(lengths)), int(lengths.max()) - 1
    step = CapturedStep(
        model, optimizer, precision, negative_pool, bank, config, rows=rows, longest=longest
    )
    return Capture(step, "")


@dataclass
class _Place:
    """Where a graph of one length reads its batch and writes its results."""

    batch: Batch
    share: Tensor
    values: Tensor
    graph: torch.cuda.CUDAGraph | None = None


class CapturedStep:
    """`trainer.train_step` for batches of any length, by a graph for each of a few lengths.

    The graphs share their memory and are captured when a length first occurs, on a GPU. On a CPU
    the same operations run one by one, which is of use in tests only.
    """

    def __init__(
        self,
        model: NextVectorModel,
        optimizer: torch.optim.Optimizer,
        precision: str,
        negative_pool: NegativePool,
        bank: Tensor,
        config: TrainConfig,
        *,
        rows: int,
        longest: int,
    ) -> None:
        """Prepare; nothing is captured yet.

        Args:
            model: trained in place, on the bank's device.
            optimizer: AdamW with fused kernels, whose state is already that of a resumed training.
            precision: ``bf16`` or ``float32``.
            negative_pool: of InfoNCE, without hard negatives.
            bank: float32 ``(n_concepts, 768)`` unit rows.
            config: loss, clipping, and with ``compile`` on also torch's compiler for the layers.
            rows: chains of the largest batch.
            longest: positions of the longest chain.
        """
        self.failed = ""
        self._model, self._optimizer, self._precision = model, optimizer, precision
        self._bank, self._config, self._rows, self._longest = bank, config, rows, longest
        self._candidates = _candidates(negative_pool, bank, config)
        self._lr = torch.zeros((), device=bank.device)
        self._places: dict[int, _Place] = {}
        # compiling takes longer than what shorter graphs would save: one length, one compilation
        self._compiles = config.compile == "on" and compiles(model, longest)
        self._names: list[str] = []
        self._pool = torch.cuda.graph_pool_handle() if bank.is_cuda else None

    def __str__(self) -> str:
        """Return what ran, for a person and for the tracked run."""
        if self.failed:
            return f"failed ({self.failed})"
        lengths = ", ".join(map(str, sorted(self._places))) or "no"
        return f"on ({lengths} positions{', compiled' if self._compiles else ''})"

    def __call__(self, batch: Batch, lr: float) -> dict[str, float] | None:
        """Take one step; returns the loss terms and ``grad_norm``, as `trainer.train_step`.

        Returns:
            None where the capture failed, after a warning: weights and optimizer are as before.

        Raises:
            CompileError: the capture failed, and ``compile`` is on.
        """
        length = self._longest
        if not self._compiles:
            length = graph_length(batch.mask.shape[1], self._longest)
        given = padded(batch, self._rows, length)
        share = given.mask / len(batch.all_targets)
        self._lr.fill_(lr)
        if length not in self._places:
            self._places[length] = _Place(given, share, torch.zeros(0))
            if self._bank.is_cuda and not self._capture(length):
                return None
        place = self._places[length]
        for to, value in zip(_tensors(place.batch), _tensors(given), strict=True):
            to.copy_(value)
        place.share.copy_(share)
        if place.graph is None:
            place.values = self._step(place)
        else:
            place.graph.replay()
        return dict(zip(self._names, place.values.tolist(), strict=True))

    def _step(self, place: _Place) -> Tensor:
        """The operations of a step; returns the loss terms and the norm, in one tensor."""
        low = self._precision == "bf16"
        with _capturable(self._optimizer, self._lr):
            with torch.autocast(self._bank.device.type, torch.bfloat16, enabled=low):
                losses = padded_losses(
                    self._model, place.batch, place.share, self._bank, self._config,
                    self._candidates,
                )  # fmt: skip
            losses["total"].backward()
            norm = self._clip()
            values = torch.stack([*losses.values(), norm]).detach()
            with _skips(self._optimizer, ~values.isfinite().all()):
                self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        self._names = [*losses, "grad_norm"]
        return values

    def _clip(self) -> Tensor:
        """Scale the gradient as the plain step does; where nothing is to clip, by exactly 1."""
        parameters = [p for p in self._model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        limit = self._config.grad_clip
        # a product, since a number in torch.where would be copied to the GPU within the capture
        nn.utils.clip_grads_with_norm_(parameters, limit, norm * (norm > limit))
        return norm

    def _capture(self, length: int) -> bool:
        """Capture the graph of a length; returns whether that worked."""
        place = self._places[length]
        before = _Before(self._model, self._optimizer)
        try:
            with _compiled(self._model, self._compiles):
                place.graph, place.values = capture_graph(lambda: self._step(place), self._pool)
        except Exception as error:  # kernels and compilers fail in many ways
            self._give_up(error)
        finally:
            self._optimizer.zero_grad(set_to_none=True)
            before.restore()
        return not self.failed

    def _give_up(self, error: Exception) -> None:
        """Keep the reason and free the graphs; raises where the capture was asked for."""
        self.failed = f"{type(error).__name__}: {errors.first_line(error)}"
        self._places.clear()
        text = f"the training step cannot be captured as a CUDA graph: {self.failed}"
        if self._config.compile == "on":
            raise errors.CompileError(f"{text}; use --compile off") from error
        warnings.warn(
            f"{text}. Training goes on without, more slowly; --compile off avoids this warning",
            stacklevel=2,
        )


def _candidates(pool: NegativePool, bank: Tensor, config: TrainConfig) -> Tensor | None:
    """The candidates of InfoNCE, the same for every batch; None where none are needed."""
    if not config.infonce_weight or pool.is_memory:
        return None
    assert pool.targets is not None
    assert pool.hard is None
    return pool.vectors(pool.targets, bank)


def _tensors(batch: Batch) -> Iterator[Tensor]:
    """What a step reads of a padded batch."""
    assert batch.mix is not None
    given = (batch.vectors, batch.targets, batch.tmd, batch.relations)
    yield from (t for t in (*given, batch.mix.weight, batch.mix.targets) if t is not None)


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer, lr: Tensor) -> Iterator[None]:
    """Let an optimizer read its learning rate from a tensor, within the block only.

    Its ``state_dict`` therefore is the same whether a step was captured or not.
    """
    before = [(group["lr"], group["capturable"]) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"], group["capturable"] = lr, lr.is_cuda
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(optimizer.param_groups, before, strict=True):
            group["lr"], group["capturable"] = rate, capturable


@contextmanager
def _skips(optimizer: torch.optim.Optimizer, skipped: Tensor) -> Iterator[None]:
    """Let fused AdamW change nothing where ``skipped`` is true, as `torch.amp.GradScaler` does."""
    optimizer.found_inf = skipped.to(torch.float32)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer.found_inf  # type: ignore[attr-defined]


def compiles(model: nn.Module, length: int) -> bool:
    """Whether torch's compiler is worth its time: it unrolls the chunks of a sequence."""
    chunks = [m.mixer.config.chunk_size for m in model.modules() if isinstance(m, Mamba2Layer)]
    return bool(chunks) and length <= COMPILED_CHUNKS * min(chunks)


@contextmanager
def _compiled(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Let torch's compiler fuse each layer's operations, within the block only."""
    layers = [m for m in model.modules() if isinstance(m, Mamba2Layer)] if wanted else []
    for layer in layers:
        layer.compile(dynamic=False)
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None


class _Before:
    """Weights and optimizer as they were before the steps that warm up a capture."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._weights = [(p, p.detach().clone()) for p in model.parameters()]
        self._optimizer = optimizer
        self._states = {
            p: {name: value.clone() for name, value in state.items()}
            for p, state in optimizer.state.items()
        }

    @torch.no_grad()
    def restore(self) -> None:
        """Write them back in place: graphs know the addresses."""
        for p, weight in self._weights:
            p.copy_(weight)
        for parameter, state in self._optimizer.state.items():
            for name, value in state.items():
                if parameter in self._states:
                    value.copy_(self._states[parameter][name])
                else:
                    value.zero_()  # as AdamW begins
