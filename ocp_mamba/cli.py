"""The ``ocp-mamba`` command: parse, call, print."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocp_mamba import __version__
from ocp_mamba.config import (
    MODEL_SIZES,
    ConfigError,
    ModelConfig,
    TrainConfig,
    model_config,
    override,
    read_config_file,
)
from ocp_mamba.presets import BASE, PRESETS, listing, preset
from ocp_mamba.processor import widen_openblas

if TYPE_CHECKING:
    from ocp_mamba.data.sample import JudgeLimits
    from ocp_mamba.job import TrainJob

GROUPS = {
    "compare": "ocp_mamba.cli_compare",
    "data": "ocp_mamba.cli_data",
    "quality": "ocp_mamba.cli_quality",
    "runs": "ocp_mamba.cli_runs",
    "sweep": "ocp_mamba.cli_sweep",
    "variants": "ocp_mamba.cli_variants",
}
AUTO = "auto"


class _Lazy(click.Group):
    """Opens the modules of the other commands when they are asked for: they import much."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *GROUPS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in GROUPS:
            return super().get_command(ctx, cmd_name)
        from importlib import import_module

        found = getattr(import_module(GROUPS[cmd_name]), cmd_name)
        assert isinstance(found, click.Command)
        return found


class AutoInt(click.ParamType):
    """A positive number, or ``auto`` for what the model size or the config file says."""

    name = "integer or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return None for ``auto``, else the number."""
        if value == AUTO:
            return None
        return click.IntRange(min=1).convert(value, param, ctx)


class _AutoBool(click.ParamType):
    """True or false, or ``auto`` for what the preset or the config file says."""

    name = "true, false or auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return None if value == AUTO else click.BOOL.convert(value, param, ctx)


class InputError(click.ClickException):
    """A problem of the user's input: one line, no traceback, exit code 2."""

    exit_code = 2


def _flag(name: str, text: str) -> Callable[[Any], Any]:
    """An option that works as a bare flag and, for ``mlflow run``, with true or false after it."""
    return click.option(
        name, is_flag=False, flag_value="true", type=_AutoBool(), default=None, help=text
    )


def judge_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the limits beyond which a dataset is judged on a sample, see `data.sample`."""
    count = click.IntRange(min=0)
    for option in (
        click.option("--judge-seed", type=count, default=0, show_default=True,
                     help="Draws the sample that a larger dataset is judged on."),
        click.option("--judge-train", type=count, default=40_000, show_default=True, metavar="N",
                     help="Train sequences that cheap baselines learn from at most; 0: all."),
        click.option("--judge-pool", type=count, default=100_000, show_default=True, metavar="M",
                     help="Concepts that retrieval searches at most; 0: the whole bank."),
        click.option("--judge-sequences", type=count, default=10_000, show_default=True,
                     metavar="N", help="Sequences judged of val, or of test, at most; 0: all."),
    ):  # fmt: skip
        command = option(command)
    return command


def judge_limits(flags: Mapping[str, Any]) -> JudgeLimits:
    """Return the limits that `judge_options` were given."""
    from ocp_mamba.data.sample import JudgeLimits

    return JudgeLimits(
        flags["judge_sequences"], flags["judge_train"], flags["judge_pool"], flags["judge_seed"]
    )


@click.group(cls=_Lazy)
@click.version_option(__version__, prog_name="ocp-mamba")
def main() -> None:
    """Train a Mamba-2 latent vector model, and know from MLflow whether it is any good."""
    widen_openblas()


def listed(lines: str) -> str:
    """Lines for an epilog, which keeps them apart."""
    return "".join(f"      {line}\n" for line in lines.splitlines())


@main.command(
    epilog=f"""
    \b
    Example:
      ocp-mamba train --data ocp_training_9k.npz --model-size small --n-layers 6 \\
        --batch-size 64 --max-epochs 6 --early-stopping --output model.pt
      torchrun --nproc-per-node 4 -m ocp_mamba train --data ocp_training_9k.npz

    \b
    Presets:
{listed(listing())}    """
)
@click.option("--data", required=True, help="Dataset file, folder of shards, or an older npz.")
@click.option(
    "--model-size",
    type=click.Choice(list(MODEL_SIZES)),
    default="small",
    show_default=True,
    help="small: d_model 768, 6 layers in 3 stacks, d_state 16.",
)
@click.option("--preset", "preset_name", type=click.Choice(list(PRESETS)), default=BASE,
              show_default=True, help="A planned variant, see below; other flags win.")  # fmt: skip
@click.option("--n-layers", type=AutoInt(), help="Instead of the size's own.")
@click.option("--members", type=AutoInt(), help="Stacks that share the layers and are averaged.")
@click.option("--d-state", type=AutoInt(), help="Instead of the size's own.")
@click.option("--n-memory", type=click.IntRange(min=0), metavar="N",
              help="Remember up to N train targets to answer with; 0 for none.")  # fmt: skip
@_flag("--tmd", "Condition on each chain's TMD vector.")
@_flag("--relations", "Condition on the relations between concepts that the dataset names.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Chains a step, all processes.")
@click.option("--max-epochs", type=click.IntRange(min=1))
@_flag("--early-stopping", "Stop when the cosine no longer rises; the best epoch is kept anyway.")
@click.option("--patience", type=click.IntRange(min=1), help="Epochs to wait; 3 if not given.")
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="On matrices only.")
@click.option("--dropout", type=click.FloatRange(min=0, max=1, max_open=True))
@click.option("--infonce-weight", type=click.FloatRange(min=0), help="Weight of the InfoNCE term.")
@click.option("--infonce-candidates", type=click.Choice(["batch", "train"]),
              help="What it tells a target from: the batch's targets, or train's.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="Of InfoNCE.")
@click.option("--hard-negatives", type=click.IntRange(min=0), metavar="K",
              help="Bank rows near each target that InfoNCE tells from it.")  # fmt: skip
@click.option(
    "--min-context",
    type=click.IntRange(min=1),
    help="Fewest concepts of context to learn from; judged are those of 2 and more.",
)
@click.option("--mixup", type=click.FloatRange(min=0), metavar="A",
              help="Mix chains in pairs by Beta(A, A); 0 mixes none.")  # fmt: skip
@click.option("--curriculum", type=click.FloatRange(min=0, max=1, max_open=True),
              help="Share of the epochs that learn short chains first.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0))
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]))
@click.option("--compile", type=click.Choice(["auto", "on", "off"]),
              help="CPU kernels, compiled once a machine; auto: where that pays.")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="auto: the GPU where torch sees one.")  # fmt: skip
@click.option("--backend", type=click.Choice(["auto", "torch", "cuda"]), default="auto",
              show_default=True, help="On a GPU; cuda: mamba_ssm's kernels.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), help="0 leaves torch's choice.")
@click.option("--baselines", type=click.Choice(["cheap", "full"]), default="cheap",
              show_default=True,
              help="full: train a GRU and a Transformer of the model's size too.")  # fmt: skip
@judge_options
@click.option("--output", default="outputs/model.pt", show_default=True, help="The .pt to write.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML; flags win.")
@click.option("--resume", is_flag=True, help="Go on with an interrupted training of this output.")
@click.option("--checkpoint-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Store whole models every N epochs too, not best and last only.")  # fmt: skip
@click.option("--experiment", default="ocp_mamba", show_default=True)
@click.option("--run-name", help="Name of the MLflow run; MLflow invents one.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(**flags: Any) -> None:
    """Train a model, judge it, track it in MLflow and register it."""
    from ocp_mamba import job_processes

    with_errors(lambda: job_processes.run(_train_job(flags), click.echo))


MODEL_FLAGS = ("n_layers", "members", "d_state", "n_memory", "dropout")
TRAIN_FLAGS = (
    "batch_size", "max_epochs", "lr", "weight_decay", "infonce_weight", "infonce_candidates",
    "temperature", "seed", "precision", "compile", "threads", "hard_negatives", "min_context",
    "mixup", "curriculum",
)  # fmt: skip


def merged_settings(flags: Mapping[str, Any]) -> tuple[ModelConfig, TrainConfig]:
    """Merge defaults, preset, config file and flags (any may be absent); what comes later wins."""
    from ocp_mamba import job
    from ocp_mamba.config import D_TMD

    path = flags.get("config_file")
    tables = read_config_file(path) if path else {"model": {}, "train": {}}
    chosen = {k: flags.get(k) for k in MODEL_FLAGS}
    if flags.get("tmd") is not None:
        chosen["d_tmd"] = D_TMD if flags["tmd"] else 0
    variant = preset(flags.get("preset_name", BASE))
    model = model_config(
        flags["model_size"], **dict(variant.model) | tables["model"] | _given(chosen)
    )
    settings = override(
        TrainConfig(),
        **dict(variant.train) | tables["train"] | _given({k: flags.get(k) for k in TRAIN_FLAGS}),
    )
    return model, job.with_stopping(settings, flags["early_stopping"], flags.get("patience"))


def _train_job(flags: dict[str, Any]) -> TrainJob:
    from ocp_mamba import job
    from ocp_mamba.paths import resolve_file, resolve_output

    model, settings = merged_settings(flags)
    variant = preset(flags["preset_name"])
    return job.TrainJob(
        data=resolve_file(flags["data"]),
        output=resolve_output(flags["output"]),
        model=model,
        relations=variant.relations if flags["relations"] is None else flags["relations"],
        train=settings,
        device=flags["device"],
        backend=flags["backend"],
        baselines=flags["baselines"],
        experiment=flags["experiment"],
        run_name=flags["run_name"],
        judge=judge_limits(flags),
        checkpoint_every=flags["checkpoint_every"],
        resume=flags["resume"],
        allow_pickle=flags["allow_pickle"],
        progress=not flags["quiet"],
    )


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


@main.command(
    epilog="""
    \b
    Examples:
      ocp-mamba evaluate --model outputs/model.pt --data ocp_training_9k.npz --gate
      ocp-mamba evaluate --model baseline:ridge --data ocp_training_9k.npz --split test
      ocp-mamba evaluate --model outputs/model.gru.pt --data ocp_training_9k.npz
    """
)
@click.option("--model", required=True, help="A .pt of the model or of a trained "
              "baseline, models:/NAME@ALIAS, runs:/ID/FILE.pt, or baseline:NAME.")  # fmt: skip
@click.option("--data", required=True, help="Dataset file, folder of shards, or an older npz.")
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="val", show_default=True
)
@click.option("--output", default="outputs/evaluation", show_default=True, help="Folder to write.")
@click.option("--encoder", metavar="NAME_OR_FOLDER",
              help="Encodes the echo loop's texts; the bank stands in without it.")  # fmt: skip
@click.option("--decoder", type=click.Choice(["vec2text"]),
              help="Closes the echo loop once more by decoding predictions; needs --encoder and "
              "pip install 'ocp-mamba[vec2text]'.")  # fmt: skip
@click.option("--index", type=click.Choice(["auto", "exact", "ivf", "hnsw"]), default="auto",
              show_default=True, help="Of the bank; auto: exact to a million rows.")  # fmt: skip
@click.option("--weights", type=click.Choice(["float32", "bf16", "int8"]), default="float32",
              show_default=True, help="Round the model's matrices first.")  # fmt: skip
@click.option("--against", type=click.Choice(["cheap", "none"]), default="cheap",
              show_default=True, help="Baselines to judge beside it; gates need them.")  # fmt: skip
@judge_options
@click.option("--gate", is_flag=True, help="Exit with 1 when a gate fails.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
def evaluate(**flags: Any) -> None:
    """Judge a model or a baseline on a split, and track the judgement."""
    from ocp_mamba import gates, job_evaluate
    from ocp_mamba.job_open import PREFIXES
    from ocp_mamba.paths import resolve_file, resolve_output

    def run() -> None:
        model = flags["model"]
        outcome = job_evaluate.run_evaluation(
            job_evaluate.EvaluationJob(
                model=model if model.startswith(PREFIXES) else str(resolve_file(model)),
                data=resolve_file(flags["data"]),
                split=flags["split"],
                output=resolve_output(flags["output"]),
                encoder=flags["encoder"],
                decoder=flags["decoder"],
                index=flags["index"],
                weights=flags["weights"],
                against=flags["against"] == "cheap",
                allow_pickle=flags["allow_pickle"],
                judge=judge_limits(flags),
                progress=True,
            ),
            click.echo,
        )
        failed = gates.failed(outcome.gates)
        if flags["gate"] and failed:
            raise click.ClickException(f"failed gates: {', '.join(failed)}")

    with_errors(run)


def with_errors(run: Callable[[], object]) -> None:
    """Run a command; what the user can mend ends in one line and exit code 2."""
    from ocp_mamba.backend import BackendError
    from ocp_mamba.data import DatasetError
    from ocp_mamba.distributed import WorkerLostError
    from ocp_mamba.echo import EncoderMismatchError
    from ocp_mamba.encoders import EncoderError
    from ocp_mamba.job import JobError
    from ocp_mamba.model import CheckpointError
    from ocp_mamba.registry import RegistryError
    from ocp_mamba.ssm_cpu import CompileError
    from ocp_mamba.tracking import TrackingError
    from ocp_mamba.train import TrainingError

    try:
        run()
    except (
        BackendError,
        ConfigError,
        DatasetError,
        EncoderError,
        EncoderMismatchError,
        JobError,
        CheckpointError,
        RegistryError,
        TrackingError,
        CompileError,
        TrainingError,
        OSError,
    ) as error:
        raise InputError(str(error)) from error
    except WorkerLostError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
