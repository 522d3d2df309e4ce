"""Open a predictor to evaluate: a baseline by name, a file, a registered model, a run's file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ocp_mamba.baselines.checkpoint import load_predictor
from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import JobError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.tracking.registry import load_run_file, load_version, logged_model_id

BASELINE_PREFIX, MODELS_PREFIX, RUNS_PREFIX = "baseline:", "models:/", "runs:/"
PREFIXES = (BASELINE_PREFIX, MODELS_PREFIX, RUNS_PREFIX)
"""What ``--model`` begins with where it is no path."""


@dataclass(frozen=True)
class Opened:
    """A predictor to evaluate.

    Attributes:
        predictor: in evaluation mode.
        encoder: of the vectors that it was trained on.
        model_id: its LoggedModel, where it is known.
    """

    predictor: Predictor
    encoder: Mapping[str, object]
    model_id: str | None = None


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
        loaded, encoder = load_version(model)
        _require_conditions(model, loaded, dataset)
        return Opened(loaded, encoder, logged_model_id(model))
    saved = load_run_file(model) if model.startswith(RUNS_PREFIX) else load_predictor(model)
    _require_conditions(model, saved.model, dataset)
    return Opened(saved.model, saved.encoder)


def short_name(model: str) -> str:
    """Return a path's file name, and any other ``--model`` as it is."""
    return model if model.startswith(PREFIXES) else Path(model).name


def require_one_encoder(model: str, trained_on: Mapping[str, object], dataset: Dataset) -> None:
    """Refuse a model that was trained on other vectors than the bank's, by the weights' hashes.

    Raises:
        EncoderMismatchError: the hashes are known and differ.
    """
    bank = dataset.meta.get("encoder", {})
    if gates.same_encoder(trained_on, bank) is False:
        raise EncoderMismatchError(
            f"encoder mismatch: {model} was trained on vectors of {trained_on.get('name')} "
            f"(weights {str(trained_on['weight_hash'])[:12]}), the bank's are of "
            f"{bank.get('name')} (weights {str(bank['weight_hash'])[:12]}); retrieval between them "
            "means nothing"
        )


def _require_conditions(model: str, loaded: NextVectorModel, dataset: Dataset) -> None:
    """Refuse a dataset without the inputs that the model takes beside the vectors."""
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
