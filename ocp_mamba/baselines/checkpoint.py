"""The ``.pt`` file of a trained baseline, and a reader of the file of any predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocp_mamba.baselines.neural import BASELINE_CLASSES
from ocp_mamba.config import check_type
from ocp_mamba.errors import CheckpointError, first_line, shown
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import (
    LVM_KINDS,
    check_weights,
    load_checkpoint,
    read_checkpoint,
    write_checkpoint,
)


@dataclass(frozen=True)
class SavedPredictor:
    """A trained predictor from a file.

    Attributes:
        kind: one of `LVM_KINDS`, or a key of `BASELINE_CLASSES`.
        model: in evaluation mode.
        dataset_fingerprint: of the dataset that it was trained on.
        encoder: of that dataset's vectors.
        loop: further values that the training wrote.
        learnt: hashes of what it learnt from, as `Checkpoint.learnt`.
    """

    kind: str
    model: NextVectorModel
    dataset_fingerprint: str
    encoder: Mapping[str, object]
    loop: Mapping[str, Any]
    learnt: Mapping[str, Any] | None = None


def save_baseline(
    path: Path | str,
    model: NextVectorModel,
    *,
    dataset_fingerprint: str,
    encoder: dict[str, Any],
    loop: dict[str, Any] | None = None,
    learnt: dict[str, Any] | None = None,
) -> None:
    """Write a trained baseline's ``.pt``, which loads with ``weights_only=True``.

    Raises:
        CheckpointError: the model's class is not in `BASELINE_CLASSES`.
    """
    for kind, of_class in BASELINE_CLASSES.items():
        if isinstance(model, of_class):
            content = {
                "settings": model.settings,
                "state_dict": model.state_dict(),
                "dataset_fingerprint": dataset_fingerprint,
                "encoder": encoder,
                "loop": loop or {},
                **({} if learnt is None else {"learnt": learnt}),
            }
            write_checkpoint(path, kind, content)
            return
    raise CheckpointError(
        f"checkpoint {path}: a {type(model).__name__} is not one of the trained baselines "
        f"{', '.join(BASELINE_CLASSES)}"
    )


def load_predictor(path: Path | str) -> SavedPredictor:
    """Read the ``.pt`` of an `OCPMambaLVM` or of a trained baseline.

    Raises:
        CheckpointError: the file cannot be read, is of an unknown kind, or its weights do not fit
            its settings.
    """
    content = read_checkpoint(path)
    kind = content["kind"]
    if kind in LVM_KINDS:
        checkpoint = load_checkpoint(path)
        model: NextVectorModel = checkpoint.build_model()
    elif kind in BASELINE_CLASSES:
        model = _baseline(path, kind, content)
    else:
        raise CheckpointError(
            f"checkpoint {path}: kind {shown(kind)} is unknown; this version reads "
            f"{', '.join([*LVM_KINDS, *BASELINE_CLASSES])}"
        )
    return SavedPredictor(
        kind,
        model.eval(),
        content["dataset_fingerprint"],
        content["encoder"],
        content.get("loop", {}),
        content.get("learnt"),
    )


def _baseline(path: Path | str, kind: str, content: Mapping[str, Any]) -> NextVectorModel:
    """Build a trained baseline, once its weights are known to fit its settings."""
    settings, weights = content["settings"], content["state_dict"]
    place = f"checkpoint {path}: its kind is {kind!r}, but its content does not fit that baseline"

    def build(**changed: Any) -> NextVectorModel:
        return BASELINE_CLASSES[kind](**{**settings, **changed})

    try:
        for name in ("width", "hidden", "n_layers"):
            check_type(name, "int", settings.get(name, 1))
        one_layer = {"n_layers": 1} if "n_layers" in settings else {}
        check_weights(place, weights, lambda: build(**one_layer), settings.get("n_layers", 1))
        model = build()
    except CheckpointError:
        raise
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{place}: key 'settings': {first_line(error)}") from error
    model.load_state_dict(weights, strict=True)
    return model
