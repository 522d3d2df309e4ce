"""`ocp-mamba quality`: the table of the model and its baselines over several seeds."""

from __future__ import annotations

from typing import Any

import click

from ocp_mamba.cli.options import (
    AutoInt,
    Seeds,
    comparison_options,
    comparison_settings,
    with_errors,
)


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
@click.option("--only", type=click.Choice(["train", "table"]),
              help="train: evaluate nothing, so that processes can share seeds. table: train "
              "nothing.")  # fmt: skip
@click.option("--n-layers", type=AutoInt(), help="Instead of the size's own.")
@click.option("--max-epochs", type=click.IntRange(min=1), help="Of each training, at most.")
@comparison_options
def quality(**flags: Any) -> None:
    """Train the model, a GRU and a Transformer with several seeds, and evaluate them all.

    Settings are those of `make run`. The table has every baseline, the mean over seeds with an
    interval over families and seeds, and a verdict for each column. All of it is one MLflow run
    with a child run for each predictor and seed.
    """

    def run() -> None:
        from ocp_mamba.jobs import baseline_comparison

        baseline_comparison.run_quality(
            baseline_comparison.QualityJob(
                **comparison_settings(flags), split=flags["split"], only=flags["only"]
            ),
            click.echo,
        )

    with_errors(run)
