"""Opening what is to be evaluated: a baseline by name, a file, a registered model, a run's file.

A predictor of the user's own is taken as it is, and each of its answers is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ocp_mamba.baselines.checkpoint import load_predictor
from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.data.analysis.leakage import LEARN_ALL
from ocp_mamba.data.analysis.learnt import Learnt, learnt_from
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError, JobError
from ocp_mamba.evaluation.exposure import TrainedOn
from ocp_mamba.evaluation.predict import device_of
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking.registry import load_registered, load_run_file, logged_model_id

BASELINE_PREFIX, MODELS_PREFIX, RUNS_PREFIX = "baseline:", "models:/", "runs:/"
PREFIXES = (BASELINE_PREFIX, MODELS_PREFIX, RUNS_PREFIX)
"""What ``--model`` begins with where it is no path."""

UNIT_TOLERANCE = 1e-3
"""How far from 1 the length of a predictor's row may be."""


@dataclass(frozen=True)
class Opened:
    """A predictor to evaluate.

    Attributes:
        predictor: in evaluation mode.
        encoder: of the vectors that it was trained on; empty where that is not known.
        model_id: its LoggedModel, where it is known.
        trained_on: what it learnt from; None for the train split of the evaluated dataset.
    """

    predictor: Predictor
    encoder: Mapping[str, object] = field(default_factory=dict)
    model_id: str | None = None
    trained_on: TrainedOn | None = None


def open_predictor(model: str, dataset: Dataset, cheap: Mapping[str, Predictor]) -> Opened:
    """Open what ``--model`` names.

    Args:
        model: the path of a ``.pt`` of the model or of a trained baseline; the same among a run's
            artifacts, ``runs:/RUN_ID/model.gru.pt``; ``models:/…``; or ``baseline:NAME``.
        dataset: to evaluate on.
        cheap: the baselines by name.

    Raises:
        JobError: the baseline is unknown, or the dataset lacks what the model takes.
        CheckpointError, RegistryError: the model cannot be loaded.
    """
    if model.startswith(BASELINE_PREFIX):
        name = model.removeprefix(BASELINE_PREFIX)
        if name not in cheap:
            raise JobError(
                f"baseline {name!r} is unknown; choose one of {', '.join(cheap)}. A trained one "
                "is evaluated by the file that `ocp-mamba train --baselines full` writes, as "
                "--model outputs/model.gru.pt"
            )
        return Opened(cheap[name], dataset.meta.get("encoder", {}))
    if model.startswith(MODELS_PREFIX):
        version, loaded = load_registered(model)
        require_conditions(model, loaded, dataset)
        learnt = what_it_learnt(model, version.learnt)
        return Opened(loaded, version.encoder, logged_model_id(model), learnt)
    saved = load_run_file(model) if model.startswith(RUNS_PREFIX) else load_predictor(model)
    require_conditions(model, saved.model, dataset)
    return Opened(saved.model, saved.encoder, trained_on=what_it_learnt(model, saved.learnt))


def what_it_learnt(model: str, learnt: Mapping[str, Any] | None) -> TrainedOn:
    """What a file says that its model learnt from; where it says nothing, why."""
    if learnt is None:
        return TrainedOn(
            f"{short_name(model)} does not say what it learnt from, because an earlier version "
            "wrote it; train it again, or name the dataset that it was trained on (--trained-on)"
        )
    try:
        read = Learnt.from_block(learnt)
    except DatasetError as error:
        return TrainedOn(f"{short_name(model)}: {error}")
    return TrainedOn(
        f"the {read.examples.count:,} train sequences that {short_name(model)} names", read, True
    )


def declared(dataset: Dataset, name: str) -> TrainedOn:
    """What a caller says that a predictor learnt from: the train split of a dataset."""
    words = f"the train split of {name}, as the caller says; nothing proves it"
    return TrainedOn(words, learnt_from(dataset, LEARN_ALL))


class PrefixOnly(Protocol):
    """A predictor of the user's own that knows no positions, only contexts."""

    def predict(self, contexts: Tensor) -> Tensor:
        """Return what follows B contexts of one length, ``(B, L, 768)``: unit rows (B, 768)."""
        ...


class PrefixPredictor:
    """Predicts every position by giving a `PrefixOnly` each beginning of a chain on its own.

    It is given contexts of one length at a time, without padding, and with ``tmd (B, 16)`` where it
    has an attribute ``d_tmd`` above 0.
    """

    def __init__(self, predictor: PrefixOnly, name: str) -> None:
        """Wrap ``predictor``, which messages call ``name``."""
        self.predictor, self._name = predictor, name
        self.d_tmd = int(getattr(predictor, "d_tmd", 0))

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        """Return ``(B, L, 768)`` out of ``(B, L, 768)``; zero where the input is padded.

        Raises:
            JobError: an answer has another shape than its contexts' last positions.
        """
        out = torch.zeros(seq_vectors.shape)
        lengths = seq_vectors.cpu().any(dim=-1).sum(dim=1)
        for n in range(1, seq_vectors.shape[1] + 1):
            rows = torch.nonzero(lengths >= n)[:, 0]
            if len(rows) == 0:
                break
            given = {} if tmd is None else {"tmd": tmd[rows]}
            predicted = self.predictor.predict(seq_vectors[rows, :n], **given)
            wanted = (len(rows), seq_vectors.shape[2])
            if not isinstance(predicted, Tensor) or tuple(predicted.shape) != wanted:
                found = getattr(predicted, "shape", type(predicted).__name__)
                raise JobError(
                    f"predictor {self._name}: predict gave {found}; wanted is a float32 "
                    f"torch.Tensor {wanted} of unit rows, one for each context"
                )
            out[rows, n - 1] = predicted.cpu().to(out.dtype)
        return out


class CheckedPredictor:
    """A predictor of the user's own, each of whose answers is checked.

    It reads its vectors where its weights are (a ``torch.nn.Module``) or on the CPU. It is given
    ``tmd`` where it has an attribute ``d_tmd`` above 0, and ``relations`` where it has an
    ``n_relations`` above 0.
    """

    def __init__(self, predictor: Predictor, name: str) -> None:
        """Check the answers of ``predictor``, which messages call ``name``."""
        self.predictor, self.name = predictor, name
        self.d_tmd = int(getattr(predictor, "d_tmd", 0))
        self.n_relations = int(getattr(predictor, "n_relations", 0))

    def predict_all(
        self, seq_vectors: Tensor, tmd: Tensor | None = None, **given: Tensor
    ) -> Tensor:
        """Return the predictor's ``(B, L, 768)`` unit rows, on the CPU.

        Raises:
            JobError: they are no float32 unit rows of that shape; the message names the predictor.
        """
        if tmd is not None:
            given["tmd"] = tmd
        device = device_of(self.predictor)
        predicted = self.predictor.predict_all(
            seq_vectors.to(device), **{name: value.to(device) for name, value in given.items()}
        )
        self._require_unit_rows(predicted, seq_vectors)
        return predicted.cpu()

    def _require_unit_rows(self, predicted: object, seq_vectors: Tensor) -> None:
        shape = tuple(seq_vectors.shape)
        if not isinstance(predicted, Tensor):
            raise self._error(f"a {type(predicted).__name__}", shape)
        if tuple(predicted.shape) != shape or predicted.dtype != torch.float32:
            dtype = str(predicted.dtype).removeprefix("torch.")
            raise self._error(f"{dtype} {tuple(predicted.shape)}", shape)
        # a shorter sequence is padded by zeros, and what is predicted there is never read
        rows = predicted.detach().cpu()[seq_vectors.cpu().any(dim=-1)]
        if not rows.isfinite().all():
            raise self._error("numbers that are not finite", shape)
        lengths = rows.norm(dim=-1)
        if ((lengths - 1).abs() > UNIT_TOLERANCE).any():
            found = f"rows of length {lengths.min():.4g} to {lengths.max():.4g}"
            raise self._error(
                found, shape, "; normalize them: torch.nn.functional.normalize(x, dim=-1)"
            )

    def _error(self, found: str, shape: tuple[int, ...], way_out: str = "") -> JobError:
        return JobError(
            f"predictor {self.name}: predict_all gave {found}; wanted is a float32 torch.Tensor "
            f"{shape} of unit rows, of its input's shape{way_out}"
        )


def open_object(predictor: Predictor, name: str, dataset: Dataset) -> Opened:
    """Take a predictor that exists already; one that is not the package's own is checked.

    Raises:
        JobError: it has no ``predict_all``, or the dataset lacks what it takes.
    """
    if not callable(getattr(predictor, "predict_all", None)):
        if not callable(getattr(predictor, "predict", None)):
            raise JobError(
                f"predictor {name}: it has no method predict_all(seq_vectors, tmd=None), which "
                "takes and gives a float32 torch.Tensor (B, L, 768), and no method "
                "predict(contexts), which takes (B, L, 768) and gives (B, 768)"
            )
        predictor = PrefixPredictor(predictor, name)  # type: ignore[arg-type]
    unknown = TrainedOn(
        f"predictor {name} does not say what it learnt from; name the dataset whose train split "
        "that is (trained_on=…)"
    )
    if isinstance(predictor, NextVectorModel):
        require_conditions(name, predictor, dataset)
        return Opened(predictor, trained_on=unknown)
    checked = CheckedPredictor(predictor, name)
    if checked.d_tmd and dataset.chain_tmd is None:
        raise JobError(f"predictor {name} takes TMD vectors, and the dataset has no chain_tmd")
    return Opened(checked, trained_on=unknown)


def short_name(model: str) -> str:
    """Return a path's file name, and any other ``--model`` as it is."""
    return model if model.startswith(PREFIXES) else Path(model).name


def require_conditions(model: str, loaded: NextVectorModel, dataset: Dataset) -> None:
    """Refuse a dataset without the inputs that the model takes beside the vectors.

    Raises:
        JobError: it has no TMD vectors, or other relations than the model's.
    """
    if loaded.d_tmd and dataset.chain_tmd is None:
        raise JobError(f"{model} takes TMD vectors, and the dataset has none (no chain_tmd)")
    known = loaded.config.relations if isinstance(loaded, OCPMambaLVM) else ()
    if known and known != dataset.relations:
        raise JobError(
            f"{model} takes the relations {_names(known)}, the dataset has "
            f"{_names(dataset.relations)}; their numbers would mean something else"
        )


def _names(relations: tuple[str, ...]) -> str:
    return ", ".join(relations[:10]) + (", …" if relations[10:] else "") if relations else "none"
