"""`ocp-mamba train`: train a model, evaluate it, track it and register it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ocp_mamba.cli.options import (
    AutoInt,
    _flag,
    eval_limits,
    eval_options,
    listed,
    merged_settings,
    with_errors,
)
from ocp_mamba.config import MODEL_SIZES
from ocp_mamba.presets import BASE, CODES, PRESETS, listing, preset

if TYPE_CHECKING:
    from ocp_mamba.jobs.train import TrainJob


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
    help="small: d_model 768, 6 layers one after the other, d_state 16.",
)
@click.option("--preset", "preset_name", type=click.Choice([*PRESETS, *CODES]), default=BASE,
              show_default=True, help="A planned variant, see below; other flags win.")  # fmt: skip
@click.option("--n-layers", type=AutoInt(), help="Instead of the size's own.")
@click.option("--members", type=AutoInt(), help="Stacks that share the layers and are averaged.")
@click.option("--d-state", type=AutoInt(), help="Instead of the size's own.")
@click.option("--n-memory", type=click.IntRange(min=0), metavar="N",
              help="Remember up to N train targets to answer with; 0 for none.")  # fmt: skip
@_flag("--tmd", "Condition on each chain's TMD vector.")
@_flag("--relations", "Condition on the relations between concepts that the dataset names.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Chains a step, all processes.")
@click.option("--max-epochs", type=AutoInt(), help="Passes over the train split, at most.")
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
    help="Fewest concepts of context to learn from; evaluated are those of 2 and more.",
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
@eval_options
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
    """Train a model, evaluate it, track it in MLflow and register it."""
    from ocp_mamba.jobs import train_distributed

    with_errors(lambda: train_distributed.run(_train_job(flags), click.echo))


def _train_job(flags: dict[str, Any]) -> TrainJob:
    from ocp_mamba.jobs import train
    from ocp_mamba.system.paths import resolve_file, resolve_output

    model, settings = merged_settings(flags)
    variant = preset(flags["preset_name"])
    return train.TrainJob(
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
