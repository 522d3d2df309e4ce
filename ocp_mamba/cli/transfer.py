"""`ocp-mamba transfer`: a model and its baselines on a dataset that they have never seen."""

from __future__ import annotations

from typing import Any

import click

from ocp_mamba.cli.options import Seeds, model_address, with_errors


class _Chains(click.ParamType):
    """Different numbers with commas between them, and ``all``."""

    name = "chains"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        words = [word.strip() for word in str(value).split(",")]
        if not all(word == "all" or word.isdecimal() for word in words):
            self.fail(f"{value!r} found, whole numbers or all, as in 0,10,all, wanted", param, ctx)
        names = tuple(word if word == "all" else str(int(word)) for word in words)
        if len(set(names)) < len(names):
            self.fail(f"{value!r} names a number twice", param, ctx)
        return names


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba transfer --model outputs/model.pt --data ocp_training_9k.npz --to go.npz
      ocp-mamba transfer --model models:/ocp-mamba-lvm@candidate --data ocp_training_9k.npz \\
        --to go.npz --chains 0 --residual
    """
)
@click.option("--model", required=True,
              help="A .pt of the model or of a trained baseline, models:/NAME@ALIAS, or "
              "runs:/ID/FILE.pt.")  # fmt: skip
@click.option("--data", required=True, help="Dataset that the model was trained on: baselines are "
              "fitted on its train split.")  # fmt: skip
@click.option("--to", required=True, help="Dataset to evaluate on, of the same encoder.")
@click.option("--chains", type=_Chains(), default="0,10,100,all", show_default=True,
              metavar="N,N,…", help="Train chains of the new dataset to learn from; 0 is "
              "zero-shot.")  # fmt: skip
@click.option("--seeds", type=Seeds(), default="0,1,2", show_default=True, metavar="N,N,…",
              help="Of the draws of chains and of the fine-tuning.")  # fmt: skip
@click.option("--split", type=click.Choice(["val", "test"]), default="val", show_default=True,
              help="Of the new dataset. Only if test is named here is it used.")  # fmt: skip
@click.option("--residual", is_flag=True, help="Rows in residual form too: the context's last "
              "vector and mean with a step; their settings are chosen on the source's val "
              "split alone.")  # fmt: skip
@click.option("--epochs", type=click.IntRange(min=1), default=5, show_default=True,
              help="Of each fine-tuning.")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), default=3e-4,
              show_default=True, help="Peak learning rate of the fine-tuning.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True,
              help="Chains per step.")  # fmt: skip
@click.option("--threads", type=click.IntRange(min=0), default=0, help="0 leaves torch's choice.")
@click.option("--output", default="outputs/transfer", show_default=True,
              help="Folder of the table.")  # fmt: skip
@click.option("--models", default="outputs/trained", show_default=True,
              help="Folder of the fine-tuned models, which are kept.")  # fmt: skip
@click.option("--experiment", default="ocp_mamba", show_default=True, help="MLflow experiment.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def transfer(**flags: Any) -> None:
    """Evaluate a model on a dataset that it has never seen, before and after k of its chains.

    Nothing is trained for 0 chains. For k chains the model is fine-tuned on k train chains of the
    new dataset, and the baselines are fitted on them, on the source, and on both. One MLflow run
    has a child run for each k and seed, and one table that says who wins. The same command goes on
    after a stop.
    """

    def run() -> None:
        from ocp_mamba.config import TrainConfig
        from ocp_mamba.jobs.transfer import job
        from ocp_mamba.system.paths import resolve_file, resolve_output

        job.run_transfer(
            job.TransferJob(
                model=model_address(flags["model"]),
                source=resolve_file(flags["data"]),
                new=resolve_file(flags["to"]),
                chains=flags["chains"],
                train=TrainConfig(
                    batch_size=flags["batch_size"],
                    max_epochs=flags["epochs"],
                    lr=flags["lr"],
                    mixup=0.0,
                    threads=flags["threads"],
                ),
                seeds=flags["seeds"],
                split=flags["split"],
                residual=flags["residual"],
                output=resolve_output(flags["output"]),
                models=resolve_output(flags["models"]),
                experiment=flags["experiment"],
                allow_pickle=flags["allow_pickle"],
                progress=not flags["quiet"],
            ),
            click.echo,
        )

    with_errors(run, "the same command goes on; what was fine-tuned is kept in --models")
