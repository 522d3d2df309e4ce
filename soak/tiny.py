"""A real training that takes seconds: for campaigns that need many of them."""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np

from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import SCHEMA_VERSION, Dataset

EPOCHS = 3
MODEL = ModelConfig(d_model=32, n_layers=1, headdim=16, dropout=0.1)
TRAIN = TrainConfig(batch_size=16, max_epochs=EPOCHS, precision="float32", lr=3e-3, threads=1)
CHAINS, CONCEPTS, LENGTH = 60, 40, 5


def dataset(seed: int = 0) -> Dataset:
    """Return random chains of random concepts, 60% of them in train."""
    rng = np.random.default_rng(seed)
    bank = rng.standard_normal((CONCEPTS, 768))
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    return Dataset(
        bank=bank.astype(np.float32),
        texts=np.array([f"concept {i}" for i in range(CONCEPTS)]),
        chain_values=rng.integers(0, CONCEPTS, CHAINS * LENGTH).astype(np.int32),
        chain_offsets=(np.arange(CHAINS + 1) * LENGTH).astype(np.int64),
        chain_source=np.zeros(CHAINS, np.uint8),
        chain_tmd=None,
        split=np.repeat(np.array([0, 1, 2], np.uint8), (36, 12, 12)),
        meta={
            "schema_version": SCHEMA_VERSION,
            "encoder": {"name": "random", "weight_hash": "0" * 64},
            "sources": ["random"],
        },
        chain_first=np.full(CHAINS, 2, np.uint8),
    )


SLOW_IMPORTS = (
    "matplotlib.backends.backend_agg",
    "mlflow.pyfunc",
    "mlflow.store.db.utils",
    "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store",
    "mlflow.system_metrics.system_metrics_monitor",
    "ocp_mamba.jobs.train",
    "ocp_mamba.reports.plots",
)


class Place:
    """A folder with the dataset and a tracking store, in which trainings run."""

    def __init__(self, folder: Path, database: Path | None) -> None:
        """Make the folder.

        Args:
            folder: made anew.
            database: a migrated sqlite file to begin with, or None for no store yet.
        """
        self.folder = folder
        folder.mkdir(parents=True)
        dataset().save(folder / "data.npz")
        if database is not None:
            shutil.copyfile(database, folder / "mlflow.db")

    @property
    def output(self) -> Path:
        """The shared output of the trainings."""
        return self.folder / "out" / "model.pt"

    def train(
        self,
        *,
        resume: bool = False,
        save_minutes: float = 0.0,
        seed: int = 0,
        name: str = "model.pt",
    ) -> None:
        """Train in this process, as `ocp-mamba train` does, and log to ``log.txt``.

        Args:
            resume: see `TrainJob`.
            save_minutes: see `TrainJob`.
            seed: of the training.
            name: of the output.
        """
        from ocp_mamba.errors import EndedError
        from ocp_mamba.jobs.train import run_training
        from ocp_mamba.jobs.train_job import TrainJob

        with suppress(EndedError), (self.folder / "log.txt").open("a", encoding="utf-8") as log:
            run_training(
                TrainJob(
                    self.folder / "data.npz",
                    self.output.with_name(name),
                    MODEL,
                    replace(TRAIN, seed=seed),
                    resume=resume,
                    save_minutes=save_minutes,
                    progress=False,
                ),
                lambda line: print(line, file=log, flush=True),
            )

    def fork(self, work: Callable[[], object]) -> int:
        """Do something in a process of its own, in the folder; returns the process's id.

        What it prints goes to ``said.txt``. It exits with 0, with 1 after an error, or as ``work``
        ends it.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            os.chdir(self.folder)
            said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(said, 1)
            os.dup2(said, 2)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def run(self, work: Callable[[], object]) -> int:
        """Do something in a process of its own; returns its exit code, or minus its signal."""
        _, status = os.waitpid(self.fork(work), 0)
        return os.waitstatus_to_exitcode(status)

    def said(self) -> str:
        """Return the end of what the processes have said."""
        file = self.folder / "said.txt"
        return file.read_text(errors="replace")[-1500:] if file.exists() else ""


def import_all() -> None:
    """Import what a training needs, so that the processes that are forked need not."""
    import faiss
    import torch

    for name in SLOW_IMPORTS:
        importlib.import_module(name)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def migrated(folder: Path) -> Path:
    """Return a new sqlite file with MLflow's tables, which takes seconds to make."""
    path = folder / "empty.db"

    def make() -> None:
        import mlflow

        mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()

    place = Place(folder / "migration", None)
    if place.run(make):
        raise RuntimeError(f"no store could be made: {place.said()}")
    return path
