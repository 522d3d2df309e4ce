"""`ocp-mamba sweep`: search for the settings of a good model, with any number of workers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocp_mamba.cli.options import InputError, read_config_file, with_errors
from ocp_mamba.config import MODEL_SIZES, TrainConfig, model_config, override
from ocp_mamba.errors import ConfigError
from ocp_mamba.presets import BASE, CODES, PRESETS, preset
from ocp_mamba.sweep.defaults import (
    DEFAULT_TRIALS,
    GRACE_SECONDS,
    OBJECTIVES,
    PRUNERS,
    WARM_TRIALS,
)

if TYPE_CHECKING:
    from ocp_mamba.sweep.job import SweepJob

STORAGE_VARIABLE = "OCP_MAMBA_SWEEP_STORAGE"
AUTO = "auto"
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
OF_THE_STUDY = ("study", "space", "objective", "model_size", "preset_name", "config_file",
                "max_epochs", "seed", "pruner", "trial_timeout", "warm_start", "patience",
                "precision", "experiment")  # fmt: skip
"""The settings that a joining worker reads from the study."""


class _Duration(click.ParamType):
    """A time such as 90s, 30m, 2h or 1h30m, in seconds; ``none`` is 0, no limit."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, int | float):
            return float(value)
        parts = re.findall(r"(\d+(?:\.\d+)?)([smhd])", value)
        if value == "none":
            return 0.0
        if not parts or "".join(n + u for n, u in parts) != value:
            self.fail(f"{value!r} is no duration; write 90s, 30m, 2h, 1h30m or none", param, ctx)
        return sum(float(n) * UNITS[u] for n, u in parts)


def _or_auto(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Treat ``auto``, with which `mlflow run` fills what nobody typed, as not given."""
    return None if value == AUTO else value


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba sweep --data ocp_training_9k.npz --n-trials 20 --max-epochs 6
      ocp-mamba sweep --data mine.npz --space mine.yaml --objective cosine --objective p1
      ocp-mamba sweep --data relations.npz --preset relations
      ocp-mamba sweep --join mine --n-trials 40 --retrain-best

    \b
    Several workers, on any machine, from the study's PostgreSQL:
      export OCP_MAMBA_SWEEP_STORAGE=postgresql://me@db:5432/sweeps
      export MLFLOW_TRACKING_URI=http://tracking:5000
      ocp-mamba sweep --data mine.npz --study big --n-trials 200 --timeout 12h
      ocp-mamba sweep --join big --data mine.npz
    """
)
@click.option("--data", help="Dataset file; --join uses the study's, if this machine has it.")
@click.option("--n-trials", type=click.IntRange(min=1),
              help="Finished and pruned trials in all; "
              f"{DEFAULT_TRIALS} for a new study.")  # fmt: skip
@click.option("--study", callback=_or_auto, help="The study's name; the dataset's if not given.")
@click.option("--join", metavar="STUDY", help="Take part in a study, with its settings.")
@click.option("--storage", envvar=STORAGE_VARIABLE, metavar="FILE_OR_URL", show_envvar=True,
              help="A journal file, or postgresql://…; sweeps.journal beside mlflow.db if not "
              "given.")  # fmt: skip
@click.option("--space", callback=_or_auto, metavar="FILE", help="Search space, YAML.")
@click.option("--show-space", is_flag=True, help="Print the search space and exit.")
@click.option("--objective", multiple=True, metavar=f"[{'|'.join(OBJECTIVES)}]",
              help="Metric of the val split to maximize; several give a Pareto front.")  # fmt: skip
@click.option("--model-size", type=click.Choice(list(MODEL_SIZES)), help="small if not given.")
@click.option("--preset", "preset_name", type=click.Choice([*PRESETS, *CODES]),
              help=f"A planned variant, as for train: {', '.join(PRESETS)}.")  # fmt: skip
@click.option("--config", "config_file", type=click.Path(path_type=Path),
              help="TOML with the settings that are not searched, as for train.")  # fmt: skip
@click.option("--max-epochs", type=click.IntRange(min=1), help="Epochs of a trial.")
@click.option("--patience", type=click.IntRange(min=0), help="Epochs to wait for a better one.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]))
@click.option(
    "--seed", type=click.IntRange(min=0), help="Seed of every training, and of the search."
)
@click.option("--threads", type=click.IntRange(min=0), help="Threads of this worker.")
@click.option("--pruner", type=click.Choice([AUTO, *PRUNERS]),
              callback=_or_auto, help="asha for one objective; several cannot prune.")  # fmt: skip
@click.option("--timeout", type=_Duration(), default=0.0,
              help="Begin no further trial after 90s, 30m, 2h, …")  # fmt: skip
@click.option("--trial-timeout", type=_Duration(), help="Prune a trial after 90s, 30m, 2h, …")
@click.option("--warm-start", multiple=True, metavar="STUDY",
              help=f"Try the {WARM_TRIALS} best configurations of an earlier study "
              "first.")  # fmt: skip
@click.option("--retrain-best", is_flag=False, flag_value="true", type=click.BOOL,
              default=False,
              help="Then train the best configuration again, evaluate and "
              "register it.")  # fmt: skip
@click.option("--retrain-epochs", type=click.IntRange(min=1),
              help="For that; if not given, as many as a trial had, and at least "
              f"{TrainConfig().max_epochs}.")  # fmt: skip
@click.option("--grace", type=click.IntRange(min=2), default=GRACE_SECONDS, show_default=True,
              metavar="SECONDS", help="A worker that is silent for so long is taken for dead: "
              "another one takes its trial over.")  # fmt: skip
@click.option("--output", default="outputs/sweeps", show_default=True, help="Folder to write to.")
@click.option("--experiment", help="ocp_mamba if not given.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def sweep(**flags: Any) -> None:
    """Search for good settings: an Optuna study as one MLflow run with a child run per trial.

    Trials are ranked by the val split, never by test. Run the command again, or several times at
    once, and the study continues until it has --n-trials. Ctrl-C ends a trial cleanly. The next
    worker takes it over, as it takes over the trial of a worker that was killed.
    """
    from ocp_mamba.errors import StorageError, SweepError

    def run() -> None:
        from ocp_mamba.sweep import job

        if flags["show_space"]:
            click.echo(job.space_text(flags["space"]), nl=False)
            return
        try:
            job.run_sweep(_job(flags), click.echo)
        except (SweepError, StorageError) as error:
            raise InputError(str(error)) from error

    with_errors(run)


def _job(flags: dict[str, Any]) -> SweepJob:
    """Merge defaults, config file and flags, in that order of precedence."""
    from ocp_mamba.sweep.job import SweepJob, Wanted
    from ocp_mamba.system.paths import resolve_file, resolve_output

    own = {
        "n_trials": flags["n_trials"],
        "storage": flags["storage"],
        "data": resolve_file(flags["data"]) if flags["data"] else None,
        "output": resolve_output(flags["output"]),
        "grace": flags["grace"],
        "timeout": flags["timeout"],
        "threads": flags["threads"] or 0,
        "retrain": flags["retrain_best"],
        "retrain_epochs": flags["retrain_epochs"],
        "allow_pickle": flags["allow_pickle"],
        "progress": not flags["quiet"],
    }
    if flags["join"]:
        given = [f"--{re.sub('_(file|name)$', '', k).replace('_', '-')}" for k in OF_THE_STUDY
                 if flags.get(k) not in (None, ())]  # fmt: skip
        if given:
            raise InputError(f"{', '.join(given)} cannot go with --join: the study has its own")
        return SweepJob(study=flags["join"], wanted=None, **own)
    if own["data"] is None:
        raise InputError("--data FILE is needed to start a study; --join STUDY takes part in one")
    tables = _tables(flags["config_file"])
    variant = preset(flags["preset_name"] or BASE)
    model = model_config(flags["model_size"] or "small", **dict(variant.model) | tables["model"])
    train = override(TrainConfig(), **dict(variant.train) | tables["train"])
    train = override(
        train, **{k: flags[k] for k in ("max_epochs", "patience", "precision", "seed")}
    )
    objectives = tuple(o for given in flags["objective"] or ("cosine",) for o in given.split(","))
    wanted = Wanted(
        objectives=objectives,
        space=Path(resolve_file(flags["space"])) if flags["space"] else None,
        model=model,
        train=train,
        pruner=flags["pruner"],
        trial_seconds=flags["trial_timeout"] or 0.0,
        warm_start=flags["warm_start"],
        experiment=flags["experiment"],
        relations=variant.relations,
    )
    return SweepJob(study=flags["study"] or Path(own["data"]).stem, wanted=wanted, **own)


def _tables(path: Path | None) -> dict[str, dict[str, Any]]:
    """The tables of a config file; a misspelled setting is refused."""
    tables = read_config_file(path) if path else {"model": {}, "train": {}}
    try:
        override(model_config("small"), **tables["model"])
        override(TrainConfig(), **tables["train"])
    except ConfigError as error:
        raise ConfigError(f"config file {path}: {error}") from error
    return tables
