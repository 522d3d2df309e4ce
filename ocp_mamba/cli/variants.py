"""`ocp-mamba variants`, `quality` and `benchmark`: tables of many trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ocp_mamba.cli.options import (
    AutoInt,
    Seeds,
    comparison_options,
    comparison_settings,
    listed,
    with_errors,
)
from ocp_mamba.presets import ABLATIONS, CODES, SCALING, VARIANTS, listing


class _Names(click.ParamType):
    """Different variants with commas between them, or all of them."""

    name = "variants"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        words = VARIANTS if value == "all" else str(value).split(",")
        names = tuple(CODES.get(word.strip(), word.strip()) for word in words)
        known = (*VARIANTS, *ABLATIONS)
        unknown = [name for name in names if name not in known]
        if unknown:
            self.fail(f"{unknown[0]!r} is unknown; choose of {', '.join(known)}", param, ctx)
        if len(set(names)) < len(names):
            self.fail(f"{value!r} names a variant twice", param, ctx)
        return names


@click.command(
    epilog=f"""
    \b
    Examples:
      ocp-mamba variants --data ocp_training_9k.npz
      ocp-mamba variants --data ocp_training_9k.npz --only tmd,deep --epochs 5 --seeds 0,1,2

    \b
    Variants:
{listed(listing())}      {SCALING:<14} the base on twice the concepts over the base on half of them
    """
)
@click.option("--data", required=True, help="Dataset file, or an older npz.")
@click.option("--only", type=_Names(), default="all", show_default=True, metavar="NAME,NAME,…",
              help="Of the variants below; the base is always trained.")  # fmt: skip
@click.option("--epochs", "max_epochs", type=AutoInt(), help="Of every training, at most.")
@click.option("--seeds", type=Seeds(), default="0", show_default=True, metavar="N,N,…",
              help="Train everything with each of these.")  # fmt: skip
@click.option("--output", default="outputs/variants", show_default=True,
              help="Folder of the table.")  # fmt: skip
@click.option("--lr", type=click.FloatRange(min=0, min_open=True), help="Peak learning rate.")
@comparison_options
def variants(**flags: Any) -> None:
    """Train the base and its variants, and compare them on val.

    One MLflow run has a child run for each training, and one table: metrics with intervals, paired
    differences to the base, parameters and minutes. A variant that needs what the dataset does not
    have is "not run". Where a variant fails, its row has the reason, the others go on, and the exit
    code is 1. Ctrl-C loses only the training that runs: the same command goes on with it.
    """

    def run() -> None:
        from ocp_mamba import errors
        from ocp_mamba.jobs import variants

        try:
            variants.run_variants(
                variants.VariantsJob(**comparison_settings(flags), only=flags["only"]),
                click.echo,
            )
        except errors.VariantsError as error:
            raise click.ClickException(str(error)) from error

    with_errors(run)


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


@click.group(
    epilog="Example: ocp-mamba benchmark wn18rr --folder WN18RR --encoder all-mpnet-base-v2"
)
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
