"""Several processes that train one model: their ranks, their communication, and lost processes.

torchrun starts the processes and sets the environment variables that `join` reads; a process that
torchrun did not start is a `World` of size 1. Gradients are averaged by torch's
DistributedDataParallel, with gloo between CPUs and NCCL between GPUs.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ocp_mamba.errors import WorkerLostError
from ocp_mamba.system.process import HOST_TAG, PID_TAG, Killed, process_is_gone, process_tags

TIMEOUT = timedelta(minutes=30)
"""Longest wait for a collective operation; the other ranks wait while rank 0 validates."""

RENDEZVOUS_TIMEOUT = timedelta(minutes=5)
"""Longest wait for the other processes at the start."""

GONE_SECONDS = 5.0
"""How long to look for the process that ended, after a collective operation failed."""
COLLECTIVE_ERROR = re.compile("gloo|nccl|Connection (closed|reset)", re.IGNORECASE)

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of one training, as one of them sees it; a single process by default.

    Attributes:
        rank: number of this process; only rank 0 validates, writes files and uses MLflow.
        size: number of processes.
        backend: "gloo", "nccl", or "" for a single process.
        device: where this process computes.
        restarts: how often torchrun has started the processes again.
        may_restart: whether torchrun will start them again (``--max-restarts``).
        peers: `process_tags` of every process, by rank.
        store: torch's key-value store, which the launcher keeps.
    """

    rank: int = 0
    size: int = 1
    backend: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    restarts: int = 0
    may_restart: bool = False
    peers: tuple[dict[str, str], ...] = ()
    store: Any = None

    @property
    def main(self) -> bool:
        """Whether this is the process that validates, writes and tracks."""
        return self.rank == 0

    @property
    def share(self) -> tuple[int, int]:
        """Rank and size, as `batches` takes them."""
        return self.rank, self.size

    def tags(self) -> dict[str, str]:
        """Return the tags of a tracked run; none for a single process."""
        if self.size == 1:
            return {}
        return {"distributed.backend": self.backend, "distributed.restarts": str(self.restarts)}

    def wrap_ddp(self, module: nn.Module) -> nn.Module:
        """Let a module's backward pass average its gradients over all processes.

        The module starts from rank 0's parameters on every process.
        """
        if self.size == 1:
            return module
        return nn.parallel.DistributedDataParallel(
            module, forward_sync_buffers=False, gradient_as_bucket_view=True
        )

    def all_reduce(self, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add scalars by name over all processes."""
        if self.size == 1:
            return dict(parts)
        together = torch.stack([part.detach().float() for part in parts.values()])
        dist.all_reduce(together)
        return dict(zip(parts, together, strict=True))

    def broadcast(self, make: Callable[[], T]) -> T:
        """Return on every process what ``make`` returns on rank 0; the others wait for it."""
        values: list[Any] = [make() if self.main else None]
        if self.size > 1:
            dist.broadcast_object_list(values, device=self.device)
        value: T = values[0]
        return value

    @contextmanager
    def name_lost_workers(self) -> Iterator[None]:
        """Within the block, the end of another process raises a `WorkerLostError` that names it.

        The end shows as an error of a collective operation, or as torchrun's SIGTERM to the
        processes that are left. A SIGTERM while all processes run is not changed.
        """
        try:
            try:
                yield
            except RuntimeError as error:
                if not (isinstance(error, dist.DistError) or COLLECTIVE_ERROR.search(str(error))):
                    raise
                raise self._lost(self._gone(GONE_SECONDS)) from error
        except Killed as error:
            gone = self._gone(0.0) if self.size > 1 else []
            if gone:
                raise self._lost(gone) from error
            self._announce()
            raise

    def _lost(self, gone: list[str]) -> WorkerLostError:
        """The error that names who is gone; this process ends with it and ignores SIGTERM."""
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._announce()
        who = ", ".join(gone) or "a process on another host, or the network to it"
        return WorkerLostError(f"rank {self.rank} of {self.size} lost {who}")

    def _gone(self, patience: float) -> list[str]:
        """Peers on this host that ended without `_announce`; waits up to ``patience`` seconds."""
        deadline = time.monotonic() + patience
        while True:
            gone = [
                f"rank {rank} (process {tags[PID_TAG]} on {tags[HOST_TAG]})"
                for rank, tags in enumerate(self.peers)
                if rank != self.rank and process_is_gone(tags) and not self._announced(rank)
            ]
            if gone or time.monotonic() >= deadline:
                return gone
            time.sleep(0.05)

    def _announce(self) -> None:
        """Write to the store that this process ends by a signal, or because another one ended."""
        if self.store is not None:
            try:
                self.store.set(f"ended/{self.rank}", "")
            except RuntimeError:  # the launcher, which keeps the store, is gone as well
                return

    def _announced(self, rank: int) -> bool:
        try:
            return bool(self.store.check([f"ended/{rank}"]))
        except RuntimeError:
            return False


ALONE = World()


@contextmanager
def join() -> Iterator[World]:
    """Connect to the other processes that torchrun started; a single process is `ALONE`.

    Raises:
        WorkerLostError: the others cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        yield ALONE
        return
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    try:
        shared, rank, size = next(dist.rendezvous("env://", timeout=RENDEZVOUS_TIMEOUT))
        # After a restart the launcher's store still holds the addresses of the ended processes.
        store = dist.PrefixStore(f"restart {restarts} of {size}", shared)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        peers: list[Any] = [None] * size
        dist.all_gather_object(peers, process_tags())
    except RuntimeError as error:
        raise WorkerLostError(
            f"cannot reach the other processes that torchrun started: {error}"
        ) from error
    try:
        yield World(
            rank=rank,
            size=size,
            backend=backend,
            device=device,
            restarts=restarts,
            may_restart=int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) > 0,
            peers=tuple(peers),
            store=store,
        )
    finally:
        dist.destroy_process_group()
