"""Options and errors that several commands share, and the merging of settings."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocp_mamba.config import (
    D_TMD,
    MODEL_SIZES,
    ModelConfig,
    TrainConfig,
    check_type,
    model_config,
    override,
    with_stopping,
)
from ocp_mamba.errors import ConfigError, OcpMambaError, WorkerLostError, shown
from ocp_mamba.presets import BASE, preset
from ocp_mamba.system.parsing import parse, read_settings

if TYPE_CHECKING:
    from ocp_mamba.data.analysis.sample import EvalLimits


AUTO = "auto"


class AutoInt(click.ParamType):
    """A positive number, or ``auto`` for that of the model size or the config file."""

    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return None for ``auto``, else the number."""
        if value == AUTO:
            return None
        return click.IntRange(min=1).convert(value, param, ctx)


class AutoBool(click.ParamType):
    """True or false, or ``auto`` for that of the preset or the config file."""

    name = "true, false or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return None for ``auto``, else the truth value."""
        return None if value == AUTO else click.BOOL.convert(value, param, ctx)


class InputError(click.ClickException):
    """An error that the user can mend: one line, no traceback, exit code 2."""

    exit_code = 2


def flag(name: str, text: str) -> Callable[[Any], Any]:
    """Return an option that is a bare flag or, for ``mlflow run``, takes true, false or auto.

    Args:
        name: with its dashes.
        text: its help.
    """
    return click.option(
        name, is_flag=False, flag_value="true", type=AutoBool(), default=None, help=text
    )


def eval_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the limits beyond which a dataset is evaluated on a sample, see `EvalLimits`."""
    count = click.IntRange(min=0)
    for option in (
        click.option("--eval-seed", type=count, default=0, show_default=True,
                     help="Seed of the sample on which a larger dataset is evaluated."),
        click.option("--eval-train", type=count, default=40_000, show_default=True, metavar="N",
                     help="Most train sequences to fit the cheap baselines on; 0: all."),
        click.option("--eval-pool", type=count, default=100_000, show_default=True, metavar="M",
                     help="Most concepts that retrieval searches; 0: the whole bank."),
        click.option("--eval-sequences", type=count, default=10_000, show_default=True,
                     metavar="N", help="Most sequences of val, or of test, to evaluate; 0: all."),
    ):  # fmt: skip
        command = option(command)
    return command


def eval_limits(flags: Mapping[str, Any]) -> EvalLimits:
    """Return the limits from the values of `eval_options`."""
    from ocp_mamba.data.analysis.sample import EvalLimits

    return EvalLimits(
        flags["eval_sequences"], flags["eval_train"], flags["eval_pool"], flags["eval_seed"]
    )


def listed(lines: str) -> str:
    """Indent lines for an epilog, so that click does not join them."""
    return "".join(f"      {line}\n" for line in lines.splitlines())


MODEL_FLAGS = ("n_layers", "members", "d_state", "n_memory", "dropout")


TRAIN_FLAGS = (
    "batch_size", "max_epochs", "lr", "weight_decay", "infonce_weight", "infonce_candidates",
    "temperature", "seed", "precision", "compile", "threads", "hard_negatives", "min_context",
    "mixup", "curriculum",
)  # fmt: skip


TABLES = {"model": ModelConfig, "train": TrainConfig}


def read_config_file(path: Path) -> dict[str, dict[str, Any]]:
    """Read the ``[model]`` and ``[train]`` tables of a TOML file; a missing table is empty.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or has a table or a setting that is
            unknown or of the wrong type; names the file and the setting.
    """
    name = f"config file {path}"
    text = read_settings(path, ConfigError, "config file")
    content = parse(tomllib.loads, text, "TOML", ConfigError, name)
    if unknown := sorted(set(content) - set(TABLES)):
        raise ConfigError(f"{name}: unknown tables {shown(unknown)}; known: [model], [train]")
    return {table: _table(content.get(table, {}), table, name) for table in TABLES}


def _table(found: Any, table: str, name: str) -> dict[str, Any]:
    """One table of a config file, once its settings are known and of their types."""
    if not isinstance(found, dict):
        raise ConfigError(f"{name}: {table} must be a table, got {shown(found)}")
    kinds = {f.name: str(f.type) for f in fields(TABLES[table])}
    for setting, value in found.items():
        if setting not in kinds:
            raise ConfigError(
                f"{name}: [{table}] has no setting {shown(setting)}; it has {sorted(kinds)}"
            )
        try:
            check_type(setting, kinds[setting], value)
        except ConfigError as error:
            raise ConfigError(f"{name}: [{table}] {error}") from error
    return found


def merged_settings(flags: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Merge defaults, preset, config file and flags (any may be absent); the later one wins.

    Args:
        flags: values by name; None for a flag that was not given.

    Raises:
        ConfigError: a value is unknown or out of range; names the config file, if there is one.
    """
    path = flags.get("config_file")
    tables = read_config_file(path) if path else {"model": {}, "train": {}}
    try:
        return _merged(flags, tables)
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}" if path else str(error)) from error


def _merged(
    flags: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]
) -> tuple[ModelConfig, TrainConfig]:
    chosen = {k: flags.get(k) for k in MODEL_FLAGS}
    if flags.get("tmd") is not None:
        chosen["d_tmd"] = D_TMD if flags["tmd"] else 0
    variant = preset(flags.get("preset_name", BASE))
    model = model_config(
        flags["model_size"], **dict(variant.model) | dict(tables["model"]) | _given(chosen)
    )
    settings = override(
        TrainConfig(),
        **dict(variant.train)
        | dict(tables["train"])
        | _given({k: flags.get(k) for k in TRAIN_FLAGS}),
    )
    return model, with_stopping(settings, flags["early_stopping"], flags.get("patience"))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def comparison_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what `quality` and `variants` share; `comparison_settings` reads it."""
    for option in reversed((
        click.option("--models", default="outputs/trained", show_default=True,
                     help="Folder of the trained models, which `quality` and `variants` share; "
                     "what is there is not trained again."),
        click.option("--model-size", type=click.Choice(list(MODEL_SIZES)), default="small",
                     show_default=True, help="Size of the model."),
        click.option("--batch-size", type=click.IntRange(min=1), help="Chains per step."),
        click.option("--early-stopping/--no-early-stopping", default=True, show_default=True,
                     help="Stop a training when the cosine no longer rises."),
        click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]),
                     help="auto: bf16 where the hardware supports its products."),
        click.option("--threads", type=click.IntRange(min=0), help="0 leaves torch's choice."),
        click.option("--config", "config_file", type=click.Path(path_type=Path),
                     help="TOML file of settings; flags win."),
        click.option("--experiment", default="ocp_mamba", show_default=True,
                     help="MLflow experiment."),
        click.option("--allow-pickle", is_flag=True,
                     help="Open an older npz's pickles: they run code."),
        click.option("--quiet", is_flag=True, help="No progress bar."),
    )):  # fmt: skip
        command = option(command)
    return command


def comparison_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `jobs.common.ComparisonJob` out of a command's flags."""
    from ocp_mamba.system.paths import resolve_file, resolve_output

    model, train = merged_settings(flags)
    return {
        "data": resolve_file(flags["data"]),
        "output": resolve_output(flags["output"]),
        "models": resolve_output(flags["models"]),
        "model": model,
        "train": train,
        "seeds": flags["seeds"],
        "experiment": flags["experiment"],
        "allow_pickle": flags["allow_pickle"],
        "progress": not flags["quiet"],
    }


def model_address(model: str) -> str:
    """Return what `--model` names: an address as it is, else the path of a file that exists.

    Raises:
        DataNotFoundError: there is no such file.
    """
    from ocp_mamba.jobs.open_model import PREFIXES
    from ocp_mamba.system.paths import MODEL_HINT, resolve_file

    return model if model.startswith(PREFIXES) else str(resolve_file(model, MODEL_HINT))


def with_errors(run: Callable[[], object], go_on: str = "") -> None:
    """Run a command; an error that the user can mend becomes one line and exit code 2.

    Args:
        run: what the command does.
        go_on: how to go on after Ctrl-C, printed then.
    """
    try:
        run()
    except KeyboardInterrupt:
        if go_on:
            click.echo(f"\nInterrupted: {go_on}", err=True)
        raise
    except WorkerLostError as error:
        raise click.ClickException(str(error)) from error
    except (OcpMambaError, OSError) as error:
        raise InputError(str(error)) from error


class Seeds(click.ParamType):
    """Different whole numbers with commas between them."""

    name = "seeds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the seeds as a tuple."""
        if isinstance(value, tuple):
            return value
        words = str(value).split(",")
        if not all(word.strip().isdecimal() for word in words):
            self.fail(f"{value!r} found, whole numbers as in 0,1,2 wanted", param, ctx)
        seeds = tuple(int(word) for word in words)
        if len(set(seeds)) < len(seeds):
            self.fail(f"{value!r} names a seed twice", param, ctx)
        return seeds
