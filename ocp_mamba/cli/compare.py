"""`ocp-mamba compare`: rank evaluated runs by a metric."""

from __future__ import annotations

import click

from ocp_mamba.cli.options import InputError
from ocp_mamba.cli.runs import STORE_OPTION
from ocp_mamba.evaluation import names

METRICS = {
    "cosine": names.COSINE,
    "p1": names.P1,
    "p5": names.P5,
    "p10": names.P10,
    "mrr": names.MRR,
    "margin": names.MARGIN,
    "echo": names.ECHO,
}
STRATA = ("all", "seen", "unseen", "unseen_target")


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba compare gregarious-cod-117 0123456789abcdef0123456789abcdef
      ocp-mamba compare FIRST SECOND THIRD --metric p1 --stratum unseen
    """
)
@click.argument("run", nargs=-1, required=True)
@click.option("--metric", type=click.Choice(list(METRICS)), default="cosine", show_default=True)
@click.option("--stratum", type=click.Choice(STRATA), default="all", show_default=True)
@click.option("--output", default="outputs/compare", show_default=True, help="Folder to write.")
@STORE_OPTION
def compare(
    run: tuple[str, ...], metric: str, stratum: str, output: str, store: str | None
) -> None:
    """Rank evaluated runs by a metric, each RUN a run's id or name.

    Runs of `ocp-mamba train` and of `ocp-mamba evaluate` have an evaluation. Differences to the
    best are by paired bootstrap over the same sequences. Runs that were evaluated on other data,
    another split, another bank or by another version of the metrics are not ranked: exit code 2.
    """
    from ocp_mamba.errors import CompareError, TrackingError, first_line
    from ocp_mamba.jobs.compare import load_candidates
    from ocp_mamba.redact import redact
    from ocp_mamba.reports.ranking import compare as compare_runs
    from ocp_mamba.reports.ranking import to_text, write_comparison
    from ocp_mamba.system.paths import resolve_output
    from ocp_mamba.tracking.store import STORE_FAILURES, use_store

    try:
        uri = redact(use_store(store))
        comparison = compare_runs(load_candidates(run), METRICS[metric], stratum)
        files = write_comparison(comparison, resolve_output(output))
    except (CompareError, TrackingError) as error:
        raise InputError(str(error)) from error
    except STORE_FAILURES as error:
        raise InputError(f"tracking store {uri}: {first_line(error)}") from error
    click.echo(to_text(comparison))
    click.echo(f"\nwrote {', '.join(str(path) for path in files)}")
