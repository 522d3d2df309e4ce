"""The ``.pt`` file of a model: plain values and tensors, with a kind, a version and a digest."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ocp_mamba.config import ModelConfig
from ocp_mamba.errors import CheckpointError, ConfigError, first_line, shown
from ocp_mamba.model.build import build_model, class_of
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.system.logs import warn
from ocp_mamba.system.tensor_file import read_tensors, write_tensors

FORMAT_VERSION = 3
"""Version of the ``.pt`` layout that `write_checkpoint` writes; `read_checkpoint` reads older ones.

Files have a digest since version 3. Version 1 has other names."""

LVM_KINDS = ("OCPMambaLVM", "EnsembleLVM", "RelationLVM")
"""Classes of `model.build`, by the key ``kind``. Version 1 had the first name only."""

REQUIRED_KEYS: dict[str, type] = {
    "kind": str,
    "state_dict": dict,
    "dataset_fingerprint": str,
    "encoder": dict,
}
OPTIONAL_KEYS: dict[str, type] = {"loop": dict, "learnt": dict}
"""Keys beside ``format_version`` and the config, which is ``model_config`` for a model and
``settings`` for a baseline. A file with any other key is refused."""

RENAMED_SETTINGS = {
    "readout": "memory_head",
    "readout_temperature": "memory_temperature",
    "readout_weight": "memory_weight",
}
RENAMED_TENSORS = {"readout.": "memory_head.", "relations.": "relation_adapter."}
"""Names in files of version 1, and their names now; of tensors, the first part of the name."""

FIRST_LAYER = "layers.0."
STEPS, VECTORS = "lookup.steps", "lookup.vectors"

log = logging.getLogger(__name__)


def write_checkpoint(path: Path | str, kind: str, content: dict[str, Any]) -> None:
    """Write a ``.pt`` of a kind, with its format version; an older file is replaced whole."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"format_version": FORMAT_VERSION, "kind": kind} | content)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a ``.pt`` file without unpickling anything but tensors and plain values.

    A file of version 1 or 2 is read with a warning: it has no digest to compare its content with.

    Returns:
        Its content, with ``kind``. Its keys have values of the right types, and its weights are
        finite; whether they fit the config is up to `check_weights`.

    Raises:
        CheckpointError: the file is missing, damaged, no checkpoint of this package, or of a newer
            format; names the file and the key.
    """
    path = Path(path)
    content, has_digest = read_tensors(path)
    if not isinstance(content, dict) or "format_version" not in content:
        raise CheckpointError(f"checkpoint {path}: not an ocp_mamba checkpoint (no format_version)")
    version = content["format_version"]
    if type(version) is not int or version not in (1, 2, FORMAT_VERSION):
        raise CheckpointError(
            f"checkpoint {path}: format {shown(version)}, this version reads 1 to {FORMAT_VERSION}"
        )
    if version == FORMAT_VERSION and not has_digest:
        raise CheckpointError(
            f"checkpoint {path}: it has no digest: the file was cut off, or another program wrote "
            "it; copy it again, or write it with `write_checkpoint`"
        )
    if not has_digest:
        warn(
            log,
            "checkpoint %s is of format %d, which has no digest: damage to it cannot be noticed",
            path,
            version,
        )
    content = {"kind": LVM_KINDS[0]} | content
    is_lvm = isinstance(content["kind"], str) and content["kind"] in LVM_KINDS
    shape = "model_config" if is_lvm else "settings"
    _check_keys(path, content, REQUIRED_KEYS | {shape: dict})
    _check_values(path, content)
    return _from_version_1(content, shape) if version == 1 else content


def _check_keys(path: Path, content: dict[str, Any], required: dict[str, type]) -> None:
    known = {"format_version": int} | required | OPTIONAL_KEYS
    if missing := sorted(set(required) - set(content)):
        raise CheckpointError(f"checkpoint {path}: keys {missing} are missing")
    if unknown := [key for key in content if key not in known]:
        raise CheckpointError(f"checkpoint {path}: keys {shown(unknown)} are unknown")
    for key, value in content.items():
        if not isinstance(value, known[key]):
            found, wanted = shown(value), known[key].__name__
            raise CheckpointError(f"checkpoint {path}: key {key!r}: {found} found, {wanted} wanted")


def _check_values(path: Path, content: dict[str, Any]) -> None:
    """Refuse an encoder that is more than plain values, and weights that are no finite tensors."""
    for name, value in content["encoder"].items():
        if isinstance(value, dict | list | tuple | Tensor):
            raise CheckpointError(
                f"checkpoint {path}: key 'encoder': {name!r} is {shown(value)}, a text wanted"
            )
    for name, tensor in content["state_dict"].items():
        place = f"checkpoint {path}: key 'state_dict': {shown(name)}"
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{place} is {shown(tensor)}, a tensor with a name wanted")
        if name == STEPS:
            _check_steps(place, tensor, content["state_dict"].get(VECTORS))
        elif not tensor.is_floating_point():
            raise CheckpointError(f"{place} is {_described(tensor)}, floats wanted")
        if tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
            raise CheckpointError(f"{place} holds NaN or infinity: the training had broken down")


def check_weights(
    place: str, state_dict: dict[str, Tensor], build: Callable[[], nn.Module], n_layers: int
) -> None:
    """Compare weights with those of the model that they are for, before it is made.

    Args:
        place: file and key, for messages.
        state_dict: the weights.
        build: makes the model with one layer; called where tensors have shapes and no values.
        n_layers: layers of the model, which are all alike.

    Raises:
        CheckpointError: a name is missing or unknown, or a tensor has another dtype or shape.
    """
    with torch.device("meta"):
        model = build()
    wanted: dict[str, Tensor] = {}
    for name, like in model.state_dict().items():
        each = range(n_layers) if name.startswith(FIRST_LAYER) else range(1)
        wanted |= {name.replace(FIRST_LAYER, f"layers.{i}.", 1): like for i in each}
    most = _most_rows(model)
    missing, unknown = wanted.keys() - state_dict.keys(), state_dict.keys() - wanted.keys()
    if missing or unknown:
        raise CheckpointError(
            f"{place}: the weights do not fit the config: missing {shown(sorted(missing))}, "
            f"unknown {shown(sorted(unknown))}"
        )
    for name, tensor in state_dict.items():
        like = wanted[name]
        fits = tensor.shape == like.shape
        if name in most:
            fits = tensor.shape[1:] == like.shape[1:] and len(tensor) <= most[name]
        if not fits or tensor.dtype != like.dtype:
            raise CheckpointError(
                f"{place}: the weights do not fit the config: {name} is {_described(tensor)}, "
                f"{_described(like)} wanted"
            )


def _check_steps(place: str, steps: Tensor, vectors: object) -> None:
    """Refuse steps of a context lookup that name vectors which the file does not have."""
    n = len(vectors) if isinstance(vectors, Tensor) and vectors.ndim else 0
    if steps.dtype != torch.int64:
        raise CheckpointError(f"{place} is {_described(steps)}, int64 wanted")
    if steps.numel() and not 0 <= int(steps.min()) <= int(steps.max()) < n:
        raise CheckpointError(
            f"{place} holds {int(steps.min())} to {int(steps.max())}, numbers of the {n} rows of "
            f"{VECTORS!r} wanted"
        )


def _most_rows(model: nn.Module) -> dict[str, int]:
    """The most rows of the buffers whose number of rows is known only after training."""
    most: dict[str, int] = {}
    if (head := getattr(model, "memory_head", None)) is not None:
        most["memory_head.memory"] = head.max_rows
    if (lookup := getattr(model, "lookup", None)) is not None:
        most |= {STEPS: lookup.max_steps, VECTORS: 1 + 3 * lookup.max_steps}
    return most


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


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

    The weights fit the config, where `load_checkpoint` made it. ``learnt`` holds hashes of what the
    model learnt from (`data.analysis.learnt.Learnt`); None in a file that has none, such as an
    older one.
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
                f"the weights do not fit the checkpoint's config: {first_line(error)}"
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
        CheckpointError: as `read_checkpoint`, or the file holds another kind of model, or its
            weights do not fit its config.
    """
    content = read_checkpoint(path)
    kind = content["kind"]
    if kind not in LVM_KINDS:
        raise CheckpointError(
            f"checkpoint {path}: holds a baseline of kind {shown(kind)}, {' or '.join(LVM_KINDS)} "
            "wanted; `ocp-mamba evaluate --model` evaluates either"
        )
    try:
        config = ModelConfig(**content["model_config"])
    except (TypeError, ConfigError) as error:
        raise CheckpointError(f"checkpoint {path}: key 'model_config': {error}") from error
    wanted = class_of(config).__name__
    if kind != wanted and content["format_version"] > 1:
        raise CheckpointError(
            f"checkpoint {path}: its kind is {kind}, but its model_config is that of {wanted}"
        )
    check_weights(
        f"checkpoint {path}: key 'state_dict'",
        content["state_dict"],
        lambda: build_model(replace(config, n_layers=1, members=1)),
        config.n_layers,
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
