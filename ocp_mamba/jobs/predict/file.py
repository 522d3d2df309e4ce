"""Batch prediction: what a model predicts for a whole file, written to another one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ocp_mamba.data.dataset import SPLITS
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import DatasetError, JobError, RequestError
from ocp_mamba.jobs.common import Log, open_data
from ocp_mamba.jobs.open_model import require_conditions
from ocp_mamba.jobs.predict.inputs import Block, DatasetInput, Input, VectorInput, holds_vectors
from ocp_mamba.jobs.predict.open_version import OpenedModel, default_model, open_model
from ocp_mamba.jobs.predict.writers import SUFFIXES, Columns, open_writer
from ocp_mamba.system.process import stop_signals

ALL = "all"


@dataclass(frozen=True)
class PredictJob:
    """What to predict, and where to write it.

    Attributes:
        data: a dataset file, a folder of shards, an older npz, or an npz of vectors, see
            `inputs.VectorInput`.
        out: the file to write, `.parquet` or `.npz`; its folder is made where it does not exist.
        model: ``models:/…`` or the path of a ``.pt``; None for the champion, see `default_model`.
        bank: a dataset whose concepts name the predictions; None for those of a dataset that is
            predicted, else the version's own.
        split: of a dataset: "train", "val", "test" or "all".
        top_k: concepts to name for each example; 0 for none.
        vectors: whether the predicted vectors are written too.
        force: replace a file that exists.
        allow_pickle: see `open_data`.
        progress: show a progress bar.
    """

    data: Path
    out: Path
    model: str | None = None
    bank: Path | None = None
    split: str = ALL
    top_k: int = 1
    vectors: bool = False
    force: bool = False
    allow_pickle: bool = False
    progress: bool = True


def predict_file(job: PredictJob, log: Log) -> int:
    """Predict every example of a file, in bounded memory; returns how many there were.

    Args:
        job: what to predict.
        log: prints a line for a person.

    Raises:
        JobError: the output exists or has a name of another kind; or model, data and bank do not
            fit together.
        RequestError: there is nothing to write, or ``top_k`` is above the bank's size.
        DatasetError, CheckpointError, RegistryError: something cannot be read.
    """
    _require_free(job)
    if job.top_k == 0 and not job.vectors:
        raise RequestError("--top-k 0 without --vectors: there would be nothing to write")
    opened, read = _open(job, job.model or default_model(log), log)
    version = f" version {opened.version}" if opened.version else ""
    log(f"{opened.name}{version} predicts {read.n:,} sequences of {job.data}")
    with stop_signals():
        write_predictions(job, opened, read)
    return read.n


def write_predictions(job: PredictJob, opened: OpenedModel, read: Input) -> None:
    """Predict what is open already, and write the job's file.

    Args:
        job: its ``data`` and ``model`` are not looked at.
        opened: the model, with a bank where concepts are to be named.
        read: what it reads.

    Raises:
        JobError, RequestError, DatasetError: as `predict_file`.
    """
    index = _index(job, opened)
    texts = opened.texts if index is not None or read.has_chains else None
    job.out.parent.mkdir(parents=True, exist_ok=True)
    with open_writer(job.out, texts) as writer:
        for columns in _columns(job, read, opened, index):
            writer.write(columns)


def _require_free(job: PredictJob) -> None:
    """Refuse an output that is of another kind, or that is there already."""
    if job.out.suffix not in SUFFIXES:
        raise JobError(
            f"--out {job.out}: a name that ends in {' or '.join(SUFFIXES)} is wanted; the first is "
            "a table, the second holds numpy's arrays"
        )
    if job.out.is_dir() or (job.out.exists() and not job.force):
        kind = "is a folder" if job.out.is_dir() else "exists; replace it with --force"
        raise JobError(f"--out {job.out}: {kind}, or choose another name")
    if job.out.exists() and job.out.samefile(job.data):
        raise JobError(f"--out {job.out}: is the file that is to be read; choose another name")


def _open(job: PredictJob, address: str, log: Log) -> tuple[OpenedModel, Input]:
    """The model with its bank, and the file that it is to read."""
    if holds_vectors(job.data):
        opened = open_model(address, job.bank)
        return opened, VectorInput(job.data, opened.model)
    if job.bank is not None:
        raise JobError(
            "--bank names the concepts for an npz of vectors; a dataset's predictions are named by "
            "its own"
        )
    dataset = open_data(job.data, allow_pickle=job.allow_pickle, log=log)
    opened = open_model(address, dataset)
    require_conditions(address, opened.model, dataset)
    read = DatasetInput(dataset, SPLITS if job.split == ALL else (job.split,))
    if read.n == 0:
        raise DatasetError(f"{job.data}: the {job.split} split has no OCP sequences")
    return opened, read


def _index(job: PredictJob, opened: OpenedModel) -> BankIndex | None:
    """The index of the bank; None where no concepts are to be named."""
    if job.top_k == 0:
        return None
    if opened.bank is None:
        raise JobError(
            f"{opened.name}: has no bank of concepts that could name its predictions; give a "
            "dataset file, --bank, or write vectors alone, --top-k 0 --vectors"
        )
    if job.top_k > len(opened.bank):
        raise RequestError(f"--top-k {job.top_k}: the bank has {len(opened.bank):,} concepts")
    return BankIndex(opened.bank, "auto")


def _columns(
    job: PredictJob, read: Input, opened: OpenedModel, index: BankIndex | None
) -> Iterator[Columns]:
    """The rows of the file, block by block, with a progress bar."""
    done = 0
    with tqdm(total=read.n, desc="predicting", unit="seq", disable=not job.progress) as bar:
        for block in read.blocks(opened.model):
            yield _rows(block, done, index, job)
            done += len(block.predicted)
            bar.update(len(block.predicted))


def _rows(block: Block, done: int, index: BankIndex | None, job: PredictJob) -> Columns:
    n = len(block.predicted)
    columns: dict[str, np.ndarray] = {"example": np.arange(done, done + n)}
    if block.chain is not None and block.target is not None:
        columns["chain"] = block.chain
    columns["context_length"] = block.context_length
    if block.target is not None:
        columns["target"] = block.target
    if index is not None:
        columns["score"], columns["found"] = index.search(block.predicted, job.top_k)
    if job.vectors:
        columns["vector"] = block.predicted
    return columns
