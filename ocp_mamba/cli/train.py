"""`ocp-mamba train`: train a model, evaluate it, track it and register it."""

from __future__ import annotations

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
from ocp_mamba.config import DEFAULT_PATIENCE, MIN_CONTEXT, MODEL_SIZES, TrainConfig
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
              help="Compiled CPU kernels; auto: where they save time.")  # fmt: skip
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
@click.option("--resume", is_flag=True, help="Go on with an interrupted training of this output.")
@click.option("--checkpoint-every", type=click.IntRange(min=0), default=0, metavar="N",
              help="Store the whole model every N epochs, beside the best and last.")  # fmt: skip
@click.option("--experiment", default="ocp_mamba", show_default=True, help="Of the MLflow run.")
@click.option("--run-name", help="Name of the MLflow run; MLflow invents one if not given.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def train(**flags: Any) -> None:
    """Train a model, evaluate it, track it in MLflow and register it."""
    from ocp_mamba.jobs import train_distributed

    with_errors(lambda: train_distributed.run(_train_job(flags), click.echo), GO_ON)


GO_ON = (
    "the last whole epoch is kept; the same command with --resume goes on after it (before the "
    "first epoch has ended, give the same command again)"
)


def _train_job(flags: dict[str, Any]) -> TrainJob:
    from ocp_mamba.jobs.train_job import TrainJob
    from ocp_mamba.system.paths import resolve_file, resolve_output

    model, settings = merged_settings(flags)
    variant = preset(flags["preset_name"])
    return TrainJob(
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
        limits=eval_limits(flags),
        checkpoint_every=flags["checkpoint_every"],
        resume=flags["resume"],
        allow_pickle=flags["allow_pickle"],
        progress=not flags["quiet"],
    )
