"""`ocp-mamba benchmark`: the model on data and against figures that others have made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ocp_mamba.cli.options import Seeds, with_errors

ROWS = (
    "most-common-parent",
    "k-nn-votes",
    "ridge",
    "linear-softmax",
    "mlp",
    "mamba-vector",
    "mlp-head",
    "mamba-neighbours",
    "attention-tokens",
    "mamba-tokens",
)
"""As `link_prediction.rows` has them; this module imports nothing heavy, and a test compares."""


class _Rows(click.ParamType):
    """Different rows of the table with commas between them, or all of them."""

    name = "rows"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        names = ROWS if value == "all" else tuple(w.strip() for w in str(value).split(","))
        unknown = [name for name in names if name not in ROWS]
        if unknown:
            self.fail(f"{unknown[0]!r} is unknown; choose of {', '.join(ROWS)}", param, ctx)
        if len(set(names)) < len(names):
            self.fail(f"{value!r} names a row twice", param, ctx)
        return names


@click.group()
def benchmark() -> None:
    """Measure the model on an outside benchmark with published figures."""


@benchmark.command(
    epilog=f"""
    \b
    Examples:
      ocp-mamba benchmark wn18rr --folder WN18RR --encoder all-mpnet-base-v2
      ocp-mamba benchmark wn18rr --folder WN18RR --models ridge,mamba-vector --seeds 0
      ocp-mamba benchmark wn18rr --folder WN18RR --split test

    \b
    Rows:
      {", ".join(ROWS[:5])},
      {", ".join(ROWS[5:])}
    """
)
@click.option("--folder", required=True, type=click.Path(path_type=Path),
              help="Folder with train.tsv, dev.tsv, test.tsv and entity2text.txt.")  # fmt: skip
@click.option("--encoder", default="sentence-transformers/all-mpnet-base-v2", show_default=True,
              help="Folder or name of the frozen encoder of the texts.")  # fmt: skip
@click.option("--models", type=_Rows(), default="all", show_default=True, metavar="ROW,ROW,…",
              help="Rows to run; the others are not-run.")  # fmt: skip
@click.option("--seeds", type=Seeds(), default="0,1,2", show_default=True, metavar="N,N,…",
              help="Of the trained rows.")  # fmt: skip
@click.option("--split", type=click.Choice(["dev", "test"]), default="dev", show_default=True,
              help="Split to evaluate on. Dev alone chooses epochs and settings; a run on test is "
              "tagged test_split_evaluated.")  # fmt: skip
@click.option("--out", default="outputs/wn18rr", show_default=True,
              help="Folder of the table and of the trained rows.")  # fmt: skip
@click.option("--cache", help="Folder of the token vectors, 1.4 GB; by default OUT/tokens.")
@click.option("--threads", type=click.IntRange(min=0), default=0, show_default=True,
              help="0 leaves torch's choice.")  # fmt: skip
@click.option("--experiment", default="ocp_mamba", show_default=True, help="MLflow experiment.")
@click.option("--quiet", is_flag=True, help="No progress bar.")
def wn18rr(**flags: Any) -> None:
    """Find the parent of each WN18RR query among all 40,943 entities, and write one table.

    The texts are encoded once, in an hour or less, and kept. A row that was trained before with the
    same settings is not trained again, so Ctrl-C loses only the training that runs. See
    docs/wn18rr.md for what is measured.
    """

    def run() -> None:
        import torch

        from ocp_mamba.jobs.benchmark.wn18rr import BenchmarkJob, run_wn18rr
        from ocp_mamba.system.paths import caller_folder, resolve_output

        if flags["threads"]:
            torch.set_num_threads(flags["threads"])
        output = resolve_output(flags["out"])
        run_wn18rr(
            BenchmarkJob(
                folder=caller_folder() / flags["folder"],
                output=output,
                cache=resolve_output(flags["cache"]) if flags["cache"] else output / "tokens",
                encoder=flags["encoder"],
                models=flags["models"],
                seeds=flags["seeds"],
                split=flags["split"],
                experiment=flags["experiment"],
                progress=not flags["quiet"],
            ),
            click.echo,
        )

    with_errors(run, "the same command goes on; what was encoded and trained is kept")
