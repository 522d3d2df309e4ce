"""The ``.pt`` file of a trained baseline, and a reader of the file of any predictor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ocp_mamba.baselines.neural import BASELINE_CLASSES
from ocp_mamba.errors import CheckpointError
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.checkpoint import LVM_KINDS, load_checkpoint, read_checkpoint, write_checkpoint


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
    kind = str(content["kind"])
    if kind in LVM_KINDS:
        checkpoint = load_checkpoint(path)
        model: NextVectorModel = checkpoint.build_model()
    elif kind in BASELINE_CLASSES:
        try:
            model = BASELINE_CLASSES[kind](**content["settings"])
            model.load_state_dict(content["state_dict"], strict=True)
        except (TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"checkpoint {path}: its kind is {kind!r}, but its content does not fit that "
                f"baseline: {error}"
            ) from error
    else:
        raise CheckpointError(
            f"checkpoint {path}: kind {kind!r} is unknown; this version reads "
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
