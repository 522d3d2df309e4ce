"""The ``.pt`` file of a model: plain values and tensors, with a kind and a format version."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import CheckpointError, ConfigError
from ocp_mamba.model.build import build_model, class_of
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.system.files import atomic_write

FORMAT_VERSION = 2
"""Version of the ``.pt`` layout that `write_checkpoint` writes; `read_checkpoint` reads 1 too."""

LVM_KINDS = ("OCPMambaLVM", "EnsembleLVM", "RelationLVM")
"""Classes of `model.build`, by the key ``kind``. Version 1 had the first name only."""

RENAMED_SETTINGS = {
    "readout": "memory_head",
    "readout_temperature": "memory_temperature",
    "readout_weight": "memory_weight",
}
RENAMED_TENSORS = {"readout.": "memory_head.", "relations.": "relation_adapter."}
"""Names in files of version 1, and their names now; of tensors, the first part of the name."""


def write_checkpoint(path: Path | str, kind: str, content: dict[str, Any]) -> None:
    """Write a ``.pt`` of a kind, with its format version; an older file is replaced whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"format_version": FORMAT_VERSION, "kind": kind} | content
    with atomic_write(path) as file:
        torch.save(content, file)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a ``.pt`` file without unpickling anything but tensors and plain values.

    Returns:
        Its content, with ``kind``.

    Raises:
        CheckpointError: the file is missing, no checkpoint of this package, or of a newer format.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"checkpoint {path}: there is no such file") from error
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {path}: not readable with weights_only=True "
            f"({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"checkpoint {path}: not an ocp_mamba checkpoint (no format_version)")
    version = content["format_version"]
    if version not in (1, FORMAT_VERSION):
        raise CheckpointError(
            f"checkpoint {path}: format {version}, this version reads 1 and {FORMAT_VERSION}"
        )
    content = {"kind": LVM_KINDS[0]} | content
    shape = "model_config" if content["kind"] in LVM_KINDS else "settings"
    missing = sorted({shape, "state_dict", "dataset_fingerprint", "encoder"} - set(content))
    if missing:
        raise CheckpointError(f"checkpoint {path}: keys {missing} are missing")
    return _from_version_1(content, shape) if version == 1 else content


def _from_version_1(content: dict[str, Any], shape: str) -> dict[str, Any]:
    """The content with the names of version 2."""

    def renamed(settings: dict[str, Any]) -> dict[str, Any]:
        return {
            RENAMED_SETTINGS.get(k, k): renamed(v) if isinstance(v, dict) else v
            for k, v in settings.items()
        }

    def tensor_name(name: str) -> str:
        first = name.split(".")[0] + "."
        return RENAMED_TENSORS.get(first, first) + name.removeprefix(first)

    state_dict = {tensor_name(name): value for name, value in content["state_dict"].items()}
    return content | {shape: renamed(content[shape]), "state_dict": state_dict}


@dataclass(frozen=True)
class Checkpoint:
    """Content of a ``.pt`` file; ``loop`` holds plain values and tensors of the training loop.

    ``learnt`` holds hashes of what the model learnt from (`data.analysis.learnt.Learnt`); None in a
    file that has none, such as an older one.
    """

    model_config: ModelConfig
    state_dict: dict[str, Tensor]
    dataset_fingerprint: str
    encoder: dict[str, Any]
    loop: dict[str, Any]
    format_version: int = FORMAT_VERSION
    learnt: dict[str, Any] | None = None

    def build_model(self) -> OCPMambaLVM:
        """Return the model in evaluation mode.

        Raises:
            CheckpointError: the weights do not fit the config (names or shapes).
        """
        model = build_model(self.model_config)
        try:
            model.load_state_dict(self.state_dict, strict=True)
        except RuntimeError as error:
            raise CheckpointError(
                f"the weights do not fit the checkpoint's config: {error}"
            ) from error
        return model.eval()


def save_checkpoint(
    path: Path | str,
    model: OCPMambaLVM,
    *,
    dataset_fingerprint: str,
    encoder: dict[str, Any],
    loop: dict[str, Any] | None = None,
    learnt: dict[str, Any] | None = None,
) -> None:
    """Write a ``.pt`` that loads with ``weights_only=True``; an older file is replaced whole."""
    content = {
        "model_config": asdict(model.config),
        "state_dict": model.state_dict(),
        "dataset_fingerprint": dataset_fingerprint,
        "encoder": encoder,
        "loop": loop or {},
        **({} if learnt is None else {"learnt": learnt}),
    }
    write_checkpoint(path, type(model).__name__, content)


def load_checkpoint(path: Path | str) -> Checkpoint:
    """Read the ``.pt`` of an `OCPMambaLVM`.

    Raises:
        CheckpointError: as `read_checkpoint`, or the file holds another kind of model.
    """
    content = read_checkpoint(path)
    kind = content["kind"]
    if kind not in LVM_KINDS:
        raise CheckpointError(
            f"checkpoint {path}: holds a baseline of kind {kind!r}, {' or '.join(LVM_KINDS)} "
            "wanted; `ocp-mamba evaluate --model` evaluates either"
        )
    try:
        config = ModelConfig(**content["model_config"])
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"checkpoint {path}: model_config: {error}") from error
    wanted = class_of(config).__name__
    if kind != wanted and content["format_version"] > 1:
        raise CheckpointError(
            f"checkpoint {path}: its kind is {kind}, but its model_config is that of {wanted}"
        )
    return Checkpoint(
        config,
        content["state_dict"],
        content["dataset_fingerprint"],
        content["encoder"],
        content.get("loop", {}),
        content["format_version"],
        content.get("learnt"),
    )


def load_model(path: Path | str) -> OCPMambaLVM:
    """Read the model out of a ``.pt`` file, in evaluation mode.

    Raises:
        CheckpointError: as `load_checkpoint`, or the weights do not fit the config.
    """
    return load_checkpoint(path).build_model()
