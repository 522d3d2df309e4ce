"""Frozen settings: the model's shape, the training schedule, and the named model sizes.

Nothing here imports torch, so every room may import it. The package's version stands here too, for
modules that write it into files: they must not import the package that imports them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from typing import Any, TypeVar

from ocp_mamba.errors import ConfigError, shown

__version__ = "0.1.0"

D_VECTOR = 768
"""Width of a concept vector."""

D_TMD = 16
"""Width of a TMD (Domain / Task / Modifier) vector."""

MIN_CONTEXT = 2
"""Fewest context concepts of an OCP sequence."""

DEFAULT_PATIENCE = 3
"""Epochs without a better validation cosine after which early stopping ends, by default."""

LARGEST: Mapping[str, int] = {
    "d_model": 1 << 16,
    "n_layers": 1024,
    "d_state": 4096,
    "d_conv": 64,
    "expand": 64,
    "headdim": 4096,
    "d_vector": 1 << 16,
    "d_relation": 1 << 16,
    "n_memory": 1 << 24,
    "width": 1 << 16,
    "hidden": 1 << 18,
    "min_context": 255,
    "threads": 4096,
    "seed": (1 << 63) - 1,
}
"""Greatest values of whole numbers; `LARGEST_NUMBER` for all others. A config may come from a file
that somebody forged, and a model of 10**9 layers must be refused before any layer is made."""

LARGEST_NUMBER, LARGEST_FLOAT = (1 << 31) - 1, 1e30

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check_type(name: str, kind: str, value: Any) -> None:
    """Refuse a setting's value of another type than its field's, and numbers that are too large.

    Args:
        name: of the setting.
        kind: type of its field, as it is written: int, float, str, or a tuple of str.
        value: what was given for it.

    Raises:
        ConfigError: names the setting, what was found and what is wanted.
    """
    is_number = isinstance(value, Integral if kind == "int" else Real)
    if kind == "int":
        most = LARGEST.get(name, LARGEST_NUMBER)
        fits, wanted = is_number and -most <= value <= most, f"a whole number, {most:,} at most"
    elif kind == "float":
        fits = is_number and -LARGEST_FLOAT < value < LARGEST_FLOAT
        wanted = "a finite number"
    elif kind == "str":
        fits, wanted = isinstance(value, str), "text"
    else:
        fits = isinstance(value, tuple | list) and all(isinstance(v, str) for v in value)
        wanted = "a list of names"
    _require(
        fits and not (is_number and isinstance(value, bool)),
        f"{name} must be {wanted}, got {shown(value)}",
    )


def _check_types(config: Any) -> None:
    for f in fields(config):
        check_type(f.name, str(f.type), getattr(config, f.name))


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a model; the names are mamba_ssm's, the defaults the specification's (path 1A).

    ``d_tmd`` is 0 for a model without TMD conditioning and 16 for one with it.

    The other settings belong to the subclasses of `OCPMambaLVM` (see `model.build`).
    ``relations`` names the relations that the model takes, numbered from 1. ``members`` is the
    number of stacks that the layers are divided into; the stacks stand side by side, each has its
    own loss, and the prediction is the direction of the mean of theirs. ``n_memory`` is the
    greatest number of train targets that a `MemoryHead` holds, 0 for a model without one;
    ``memory_temperature`` and ``memory_weight`` are the temperature of its softmax and the weight
    of the vector that it reads. In training the temperature is that of InfoNCE, which is higher.
    ``n_lookup`` is the greatest number of train steps that a `ContextLookup` holds, 0 for a model
    without one; ``lookup_temperature`` and ``lookup_weight`` are those of its softmax and of the
    vector that it finds, ``lookup_previous`` the share in a similarity of the concept before the
    last, from 0 to 1.
    """

    d_model: int = 768
    n_layers: int = 6
    d_state: int = 16
    d_conv: int = 4
    expand: int = 2
    headdim: int = 64
    chunk_size: int = 64
    d_vector: int = D_VECTOR
    d_tmd: int = 0
    dropout: float = 0.0
    relations: tuple[str, ...] = ()
    d_relation: int = 32
    members: int = 1
    n_memory: int = 0
    memory_temperature: float = 0.03
    memory_weight: float = 10.0
    n_lookup: int = 0
    lookup_temperature: float = 0.03
    lookup_weight: float = 1.0
    lookup_previous: float = 0.3

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a shape that no model can have."""
        _check_types(self)
        object.__setattr__(self, "relations", tuple(self.relations))
        for name in (
            "d_model", "n_layers", "d_state", "d_conv", "expand", "headdim", "chunk_size",
            "d_relation", "members",
        ):  # fmt: skip
            _require(
                getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}"
            )
        _require(
            self.members <= self.n_layers,
            f"members = {self.members} stacks cannot share n_layers = {self.n_layers} layers; "
            "set members to n_layers or less",
        )
        for name in ("n_memory", "n_lookup"):
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")
        _require(
            0 <= self.lookup_previous <= 1,
            f"lookup_previous must be in [0, 1], got {self.lookup_previous}",
        )
        for name in ("memory_temperature", "memory_weight", "lookup_temperature", "lookup_weight"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        _require(self.d_vector >= 1, f"d_vector must be at least 1, got {self.d_vector}")
        _require(self.d_tmd in (0, D_TMD), f"d_tmd must be 0 or {D_TMD}, got {self.d_tmd}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        _require(
            self.d_inner % self.headdim == 0,
            f"expand * d_model = {self.d_inner} must be a multiple of headdim = {self.headdim}",
        )

    @property
    def d_inner(self) -> int:
        """Width inside the mixer, ``expand * d_model``."""
        return self.expand * self.d_model

    @property
    def nheads(self) -> int:
        """Number of SSM heads, ``d_inner / headdim``."""
        return self.d_inner // self.headdim

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of each member; they differ by one at most."""
        each, rest = divmod(self.n_layers, self.members)
        return tuple(each + (i < rest) for i in range(self.members))


MAX_MEMORY = 16_384
"""Rows of a memory head, and steps of a context lookup: a softmax over more would cost more than
the layers do."""

MODEL_SIZES: Mapping[str, ModelConfig] = {
    "tiny": ModelConfig(d_model=128, n_layers=2, headdim=32),
    "small": ModelConfig(),
    "base": ModelConfig(d_model=1024, n_layers=12, d_state=64),
}
"""`small` is the specification: d_model 768, 6 layers one after the other, d_state 16."""


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    ``batch_size`` counts chains; one pass trains on all prefixes of each. ``patience`` is the
    number of epochs without a better ``val_next_vec_cosine`` after which training stops; 0 never
    stops early. ``trend_epochs`` is the number of epochs that the alarms of a trend look back on,
    and the fewest epochs that the metric ``improvement_trend`` needs.

    ``infonce_weight`` is the weight of the contrastive loss; 0 leaves it out.
    ``infonce_candidates`` says which vectors a target is compared with: the targets of its
    ``batch``, or all targets of the ``train`` split. ``hard_negatives`` is the number of bank rows
    near a target that are added to its candidates.

    ``min_context`` is the fewest concepts of context to train on, 1 or more; evaluation has at
    least the 2 of `MIN_CONTEXT`. ``mixup`` is the a of Beta(a, a), by which chains of a batch are
    mixed in pairs (see `data.batches.Mix`); 0 mixes none. Chains are mixed in the first
    ``mixup_share`` of the epochs; the last epochs train on the chains as they are.
    ``curriculum`` is the share of the epochs in which the longest allowed chain grows (see
    `training.schedule`); 0 trains on all chains from the start.

    ``precision`` auto is bf16 where the processor multiplies bf16 matrices in hardware, else
    float32. ``compile`` auto uses the compiled CPU kernels where they save more time than they
    cost; on fails where they do not compile. ``threads`` 0 leaves the number to torch.
    """

    batch_size: int = 64
    max_epochs: int = 8
    lr: float = 1e-3
    min_lr_fraction: float = 0.05
    warmup_fraction: float = 0.05
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    infonce_weight: float = 0.0
    infonce_candidates: str = "train"
    temperature: float = 0.05
    hard_negatives: int = 0
    min_context: int = 1
    mixup: float = 1.0
    mixup_share: float = 0.7
    curriculum: float = 0.0
    patience: int = 0
    trend_epochs: int = 3
    seed: int = 0
    precision: str = "auto"
    compile: str = "auto"
    threads: int = 0

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight in the total of each loss term that is in use, by its name."""
        return {"cosine": 1.0} | ({"infonce": w} if (w := self.infonce_weight) else {})

    def __post_init__(self) -> None:
        """Raise `ConfigError` for a value of another type or outside its range."""
        _check_types(self)
        for name in ("batch_size", "max_epochs", "min_context"):
            _require(
                getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}"
            )
        _require(
            self.trend_epochs >= 2, f"trend_epochs must be at least 2, got {self.trend_epochs}"
        )
        for name in ("lr", "temperature", "grad_clip"):
            _require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
        for name in (
            "weight_decay", "infonce_weight", "hard_negatives", "mixup", "patience", "threads",
            "seed",
        ):  # fmt: skip
            value = getattr(self, name)
            _require(value >= 0, f"{name} must not be negative, got {value}")
        for name in ("min_lr_fraction", "warmup_fraction", "mixup_share"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"{name} must be in [0, 1], got {value}")
        _require(
            0 <= self.curriculum < 1,
            "curriculum must be in [0, 1), because the last epoch trains on all chains; got "
            f"{self.curriculum}",
        )
        _require(
            not self.hard_negatives or self.infonce_weight > 0,
            f"hard_negatives {self.hard_negatives} belong to InfoNCE, whose infonce_weight is 0; "
            "set it above 0, or leave hard_negatives out",
        )
        _require(
            self.infonce_candidates in ("batch", "train"),
            f"infonce_candidates must be batch or train, got {self.infonce_candidates!r}",
        )
        _require(
            self.precision in ("auto", "float32", "bf16"),
            f"precision must be auto, float32 or bf16, got {self.precision!r}",
        )
        _require(
            self.compile in ("auto", "on", "off"),
            f"compile must be auto, on or off, got {self.compile!r}",
        )


def model_config(size: str, **overrides: Any) -> ModelConfig:
    """Return the named size with overrides; a ``None`` override keeps the size's value.

    Raises:
        ConfigError: the size or an override is unknown, or a value out of range.
    """
    if size not in MODEL_SIZES:
        raise ConfigError(f"model size {size!r} is unknown; choose one of {', '.join(MODEL_SIZES)}")
    return override(MODEL_SIZES[size], **overrides)


def override(config: T, **values: Any) -> T:
    """Return ``config`` with the values that are not ``None`` replaced.

    Raises:
        ConfigError: a name is not a field of the config, or a value is out of range.
    """
    known = {f.name for f in fields(config)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise ConfigError(
                f"{type(config).__name__} has no setting {name!r}; it has {sorted(known)}"
            )
    return replace(config, **{k: v for k, v in values.items() if v is not None})  # type: ignore[type-var]


def with_stopping(config: TrainConfig, early: bool | None, patience: int | None) -> TrainConfig:
    """Return the settings with early stopping on or off.

    Args:
        config: the settings.
        early: False sets the patience to 0, True keeps the config's patience or sets
            `DEFAULT_PATIENCE`, None leaves the config as it is.
        patience: epochs to wait, unless ``early`` is False; None where it was not given.
    """
    if early is False:
        return replace(config, patience=0)
    if patience is not None:
        return replace(config, patience=patience)
    return replace(config, patience=config.patience or DEFAULT_PATIENCE) if early else config
