"""`ocp-mamba variants`: train the base and its variants, and compare them."""

from __future__ import annotations

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
