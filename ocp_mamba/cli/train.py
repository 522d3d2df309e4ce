"""`ocp-mamba train`: train a model, evaluate it, track it and register it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocp_mamba.cli.options import (
    AutoInt,
    eval_limits,
    eval_options,
    flag,
    listed,
    merged_settings,
    with_errors,
)
from ocp_mamba.config import DEFAULT_PATIENCE, MIN_CONTEXT, MODEL_SIZES, ModelConfig, TrainConfig
from ocp_mamba.errors import EndedError
from ocp_mamba.presets import BASE, CODES, PRESETS, listing, preset

if TYPE_CHECKING:
    from ocp_mamba.jobs.train_job import TrainJob

SMALL, DEFAULTS = MODEL_SIZES["small"], TrainConfig()


@click.command(
    epilog=f"""
    \b
    Example:
      ocp-mamba train --data ocp_training_9k.npz --model-size small --n-layers 6 \\
        --batch-size 64 --max-epochs 6 --early-stopping --output model.pt
      ocp-mamba train --data ocp_training_9k.npz --resume
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
    help=f"small: d_model {SMALL.d_model}, {SMALL.n_layers} layers one after the other, "
    f"d_state {SMALL.d_state}.",
)
@click.option("--preset", "preset_name", type=click.Choice([*PRESETS, *CODES]), default=BASE,
              show_default=True,
              help="Settings of a variant, see below; other flags win.")  # fmt: skip
@click.option("--n-layers", type=AutoInt(), help="Number of layers, in place of the size's.")
@click.option("--members", type=AutoInt(),
              help="Stacks that the layers are divided into, and that are averaged.")  # fmt: skip
@click.option("--d-state", type=AutoInt(), help="Width of the state, in place of the size's.")
@click.option("--n-memory", type=click.IntRange(min=0), metavar="N",
              help="Most train targets in the memory head; 0: no memory head.")  # fmt: skip
@flag("--tmd", "Condition on each chain's TMD vector.")
@flag("--relations", "Condition on the relations between concepts of the dataset.")
@click.option("--batch-size", type=click.IntRange(min=1),
              help=f"Chains per step, of all processes; {DEFAULTS.batch_size} if not "
              "given.")  # fmt: skip
@click.option("--max-epochs", type=AutoInt(),
              help=f"Epochs, unless early stopping ends earlier; {DEFAULTS.max_epochs} if not "
              "given.")  # fmt: skip
@flag("--early-stopping", "Stop when the cosine no longer rises; the best epoch is kept anyway.")
@click.option("--patience", type=click.IntRange(min=1),
              help=f"Epochs that early stopping waits for a better cosine; {DEFAULT_PATIENCE} if "
              "not given.")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.")
@click.option("--weight-decay", type=click.FloatRange(min=0), help="Of the matrices only.")
@click.option("--dropout", type=click.FloatRange(min=0, max=1, max_open=True),
              help="Share of each layer's outputs that is dropped in training.")  # fmt: skip
@click.option("--infonce-weight", type=click.FloatRange(min=0), help="Weight of the InfoNCE term.")
@click.option("--infonce-candidates", type=click.Choice(["batch", "train"]),
              help="Candidates of InfoNCE: the targets of the batch, or those of the train "
              "split.")  # fmt: skip
@click.option("--temperature", type=click.FloatRange(min=0, min_open=True),
              help="Temperature of InfoNCE.")  # fmt: skip
@click.option("--hard-negatives", type=click.IntRange(min=0), metavar="K",
              help="Bank rows near each target that are added to InfoNCE.")  # fmt: skip
@click.option(
    "--min-context",
    type=click.IntRange(min=1),
    help=f"Fewest concepts of context to train on; evaluation has {MIN_CONTEXT} or more.",
)
@click.option("--mixup", type=click.FloatRange(min=0), metavar="A",
              help="Mix chains in pairs with weights of Beta(A, A); 0: mix none.")  # fmt: skip
@click.option("--curriculum", type=click.FloatRange(min=0, max=1, max_open=True),
              help="Share of the epochs in which the chains are short at first.")  # fmt: skip
@click.option("--seed", type=click.IntRange(min=0), help="Of the weights and of all draws.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]),
              help="auto: bf16 where the hardware supports its products.")  # fmt: skip
@click.option("--compile", type=click.Choice(["auto", "on", "off"]),
              help="Compiled CPU kernels; auto: where they save time. On a GPU: CUDA graphs "
                   "(auto), with torch's compiler (on), or neither (off).")  # fmt: skip
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto",
              show_default=True, help="auto: the GPU where torch sees one.")  # fmt: skip
@click.option("--backend", type=click.Choice(["auto", "torch", "cuda"]), default="auto",
              show_default=True, help="On a GPU; cuda: mamba_ssm's kernels.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), help="0 leaves the number to torch.")
@click.option("--baselines", type=click.Choice(["cheap", "full"]), default="cheap",
              show_default=True,
              help="full: train a GRU and a Transformer of the model's size too.")  # fmt: skip
@eval_options
@click.option("--output", default="outputs/model.pt", show_default=True, help="The .pt to write.")
@click.option("--config", "config_file", type=click.Path(path_type=Path),
              help="TOML file with the tables model and train; flags win.")  # fmt: skip
@flag("--resume", "Go on with an interrupted training of this output; start one if none is left.")
@click.option("--save-minutes", type=click.FloatRange(min=0), default=10.0, show_default=True,
              help="Most minutes of training that a kill may cost; 0: up to an "
              "epoch.")  # fmt: skip
@click.option("--checkpoint-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Store the whole model every N epochs, beside the best and last.")  # fmt: skip
@click.option("--experiment", default="ocp_mamba", show_default=True, help="Of the MLflow run.")
@click.option("--run-name", help="Name of the MLflow run; MLflow invents one if not given.")
@click.option("--model-name", default="ocp-mamba-lvm", show_default=True,
              help="Registered model that gets a new version.")  # fmt: skip
@flag("--alias-anyway", "Move the alias candidate to the version whatever its gates say.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(**flags: Any) -> None:
    """Train a model, evaluate it, track it in MLflow and register it."""
    with_errors(lambda: _train(flags))


def _train(flags: dict[str, Any]) -> None:
    """Refuse what is known to be wrong at once, and only then import what takes seconds."""
    from ocp_mamba.training.asked import asked_for
    from ocp_mamba.training.run_folder import claim

    given = _given(flags)
    _, output, model, settings, relations = given
    if os.environ.get("RANK", "0") == "0":
        limits = {name: flags[f"eval_{name}"] for name in ("sequences", "train", "pool", "seed")}
        asked = asked_for(
            model, settings, relations=relations, experiment=flags["experiment"], limits=limits
        )
        with claim(output, asked, resume=bool(flags["resume"])):
            pass
    from ocp_mamba.kernels.backend import resolve_device

    resolve_device(flags["device"])
    from ocp_mamba.jobs import train_distributed

    job = _train_job(flags, *given)
    try:
        train_distributed.run(job, click.echo)
    except EndedError as error:
        click.echo(error)


def _given(flags: dict[str, Any]) -> tuple[Path, Path, ModelConfig, TrainConfig, bool]:
    """The dataset, the output, the model's shape, the training's settings, and the relations."""
    from ocp_mamba.system.paths import resolve_file, resolve_output

    model, settings = merged_settings(flags)
    data, output = resolve_file(flags["data"]), resolve_output(flags["output"])
    variant = preset(flags["preset_name"])
    relations = variant.relations if flags["relations"] is None else flags["relations"]
    return data, output, model, settings, relations


def _train_job(
    flags: dict[str, Any],
    data: Path,
    output: Path,
    model: ModelConfig,
    settings: TrainConfig,
    relations: bool,
) -> TrainJob:
    from ocp_mamba.jobs.train_job import TrainJob

    return TrainJob(
        data=data,
        output=output,
        model=model,
        relations=relations,
        train=settings,
        device=flags["device"],
        backend=flags["backend"],
        baselines=flags["baselines"],
        experiment=flags["experiment"],
        run_name=flags["run_name"],
        limits=eval_limits(flags),
        checkpoint_every=flags["checkpoint_every"],
        resume=bool(flags["resume"]),
        save_minutes=flags["save_minutes"],
        model_name=flags["model_name"],
        alias_anyway=bool(flags["alias_anyway"]),
        allow_pickle=flags["allow_pickle"],
        progress=not flags["quiet"],
    )
