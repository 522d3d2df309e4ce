"""`ocp-mamba quality`: the table of the model and its baselines over several seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ocp_mamba.cli.options import AutoInt, Seeds, merged_settings, with_errors
from ocp_mamba.config import MODEL_SIZES


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba quality --data ocp_training_9k.npz --seeds 0,1,2 --split test
      ocp-mamba quality --data ocp_training_9k.npz --seeds 1 --only train &
      ocp-mamba quality --data ocp_training_9k.npz --seeds 0,2 --only train; wait
      ocp-mamba quality --data ocp_training_9k.npz --split test --only table
    """
)
@click.option("--data", required=True, help="Dataset file, or an older npz.")
@click.option("--seeds", type=Seeds(), default="0,1,2", show_default=True, metavar="N,N,…")
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True,
              help="Split to evaluate on. Only if test is named here is it used, and the run is "
              "tagged test_split_evaluated; training uses train and val.")  # fmt: skip
@click.option("--output", default="outputs/quality", show_default=True,
              help="Folder of the table.")  # fmt: skip
@click.option("--models", default="outputs/trained", show_default=True,
              help="Folder of the trained models, which `quality` and `variants` share; what is "
              "there is not trained again.")  # fmt: skip
@click.option("--only", type=click.Choice(["train", "table"]),
              help="train: evaluate nothing, so that processes can share seeds. table: train "
              "nothing.")  # fmt: skip
@click.option("--model-size", type=click.Choice(list(MODEL_SIZES)), default="small",
              show_default=True)  # fmt: skip
@click.option("--n-layers", type=AutoInt(), help="Instead of the size's own.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Chains a step.")
@click.option("--max-epochs", type=click.IntRange(min=1))
@click.option("--early-stopping/--no-early-stopping", default=True, show_default=True)
@click.option("--precision", type=click.Choice(["auto", "float32", "bf16"]))
@click.option("--threads", type=click.IntRange(min=0), help="0 leaves torch's choice.")
@click.option("--config", "config_file", type=click.Path(path_type=Path), help="TOML; flags win.")
@click.option("--experiment", default="ocp_mamba", show_default=True)
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def quality(**flags: Any) -> None:
    """Train the model, a GRU and a Transformer with several seeds, and evaluate them all.

    Settings are those of `make run`. The table has every baseline, the mean over seeds with an
    interval over families and seeds, and a verdict for each column. All of it is one MLflow run
    with a child run for each predictor and seed.
    """

    def run() -> None:
        from ocp_mamba.jobs import baseline_comparison
        from ocp_mamba.system.paths import resolve_file, resolve_output

        model, train = merged_settings(flags)
        baseline_comparison.run_quality(
            baseline_comparison.QualityJob(
                data=resolve_file(flags["data"]),
                output=resolve_output(flags["output"]),
                models=resolve_output(flags["models"]),
                model=model,
                train=train,
                seeds=flags["seeds"],
                split=flags["split"],
                only=flags["only"],
                experiment=flags["experiment"],
                allow_pickle=flags["allow_pickle"],
                progress=not flags["quiet"],
            ),
            click.echo,
        )

    with_errors(run)
