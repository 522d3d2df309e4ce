"""`ocp-mamba evaluate`: evaluate a model or a baseline on a split, and track it."""

from __future__ import annotations

from typing import Any

import click

from ocp_mamba.cli.options import eval_limits, eval_options, model_address, with_errors


@click.command(
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
              show_default=True, help="Baselines to evaluate too; gates need them.")  # fmt: skip
@click.option("--trained-on", metavar="DATASET",
              help="What an older .pt was trained on; newer ones say it.")  # fmt: skip
@eval_options
@click.option("--gate", is_flag=True, help="Exit with 1 when a gate fails.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
def evaluate(**flags: Any) -> None:
    """Evaluate a model or a baseline on a split, and track the evaluation."""
    from ocp_mamba.evaluation import gates
    from ocp_mamba.jobs import evaluate
    from ocp_mamba.system.paths import resolve_file, resolve_output

    def run() -> None:
        outcome = evaluate.run_evaluation(
            evaluate.EvaluationJob(
                model=model_address(flags["model"]),
                data=resolve_file(flags["data"]),
                split=flags["split"],
                output=resolve_output(flags["output"]),
                encoder=flags["encoder"],
                decoder=flags["decoder"],
                trained_on=resolve_file(flags["trained_on"]) if flags["trained_on"] else None,
                index=flags["index"],
                weights=flags["weights"],
                against=flags["against"] == "cheap",
                allow_pickle=flags["allow_pickle"],
                limits=eval_limits(flags),
                progress=True,
            ),
            click.echo,
        )
        failed = gates.failed(outcome.gates)
        if flags["gate"] and failed:
            raise click.ClickException(f"failed gates: {', '.join(failed)}")

    with_errors(run, "nothing is lost but the time: give the same command again")
