"""`ocp-mamba predict`: what a model predicts for a whole file."""

from __future__ import annotations

from typing import Any

import click

from ocp_mamba.cli.options import model_address, with_errors


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba predict --data ocp_training_9k.npz --split test --out predictions.parquet
      ocp-mamba predict --model outputs/model.pt --data ocp_training_9k.npz --out all.npz --top-k 5
      ocp-mamba predict --data vectors.npz --out predictions.parquet --vectors
    """
)
@click.option("--data", required=True, help="Dataset file, folder of shards, older npz, or an npz "
              "of vectors: seq_vectors (B, L, 768), lengths (B,), tmd (B, 16).")  # fmt: skip
@click.option("--out", required=True, help="File to write: .parquet or .npz.")
@click.option("--model", help="models:/NAME@ALIAS, models:/NAME/VERSION, or a .pt file; default "
              "models:/ocp-mamba-lvm@champion, else the candidate.")  # fmt: skip
@click.option("--split", type=click.Choice(["all", "train", "val", "test"]), default="all",
              show_default=True, help="Of a dataset.")  # fmt: skip
@click.option("--top-k", type=click.IntRange(min=0), default=1, show_default=True,
              help="Concepts to name for each sequence; 0: none.")  # fmt: skip
@click.option("--vectors", is_flag=True, help="Write the predicted vectors too.")
@click.option("--bank", help="Dataset file whose concepts name the predictions for an npz of "
              "vectors; a version has one of its own.")  # fmt: skip
@click.option("--force", is_flag=True, help="Replace a file that exists.")
@click.option("--allow-pickle", is_flag=True, help="Open an older npz's pickles: they run code.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def predict(**flags: Any) -> None:
    """Predict what follows every sequence of a file, and write it to another file.

    Memory does not grow with the file. The file is written whole or not at all.
    """
    from ocp_mamba.jobs.predict.file import PredictJob, predict_file
    from ocp_mamba.system.paths import resolve_file, resolve_output

    def run() -> None:
        bank = flags["bank"]
        job = PredictJob(
            data=resolve_file(flags["data"]),
            out=resolve_output(flags["out"]),
            model=flags["model"] and model_address(flags["model"]),
            bank=None if bank is None else resolve_file(bank),
            split=flags["split"],
            top_k=flags["top_k"],
            vectors=flags["vectors"],
            force=flags["force"],
            allow_pickle=flags["allow_pickle"],
            progress=not flags["quiet"],
        )
        n = predict_file(job, click.echo)
        click.echo(f"wrote {job.out}, {n:,} rows")

    with_errors(run)
