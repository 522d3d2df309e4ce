"""`ocp-mamba promote` and `ocp-mamba rollback`: which registered version is the champion."""

from __future__ import annotations

import time

import click

from ocp_mamba.cli.options import with_errors
from ocp_mamba.cli.runs import STORE_OPTION

NAME_OPTION = click.option(
    "--model-name", "name", default="ocp-mamba-lvm", show_default=True, help="Registered model."
)


@click.command(
    epilog="""
    \b
    Examples:
      ocp-mamba promote
      ocp-mamba promote 7
      ocp-mamba promote 7 --force --reason "the only model that knows the new relations"
    """
)
@click.argument("version", default="candidate")
@NAME_OPTION
@click.option("--force", is_flag=True, help="Promote it whatever is found; needs --reason.")
@click.option("--reason", default="", help="Why it is forced; kept with the version.")
@STORE_OPTION
def promote(version: str, name: str, force: bool, reason: str, store: str | None) -> None:
    """Make VERSION the champion, if the evidence is for it.

    VERSION is a number or an alias, `candidate` if not given. Its files are checked against what
    its training wrote, it is evaluated again, and it is compared with the champion on the same
    sequences. It must pass every gate and must not lose. The version's description says why it was
    promoted or refused. Exit code 1: refused.
    """

    def run() -> int:
        from ocp_mamba.jobs.promotion.promote import REFUSED, PromotionJob, run_promotion
        from ocp_mamba.tracking.store import store_errors, use_store

        job = PromotionJob(version, name, force, reason)
        uri = use_store(store)
        with store_errors(uri):
            outcome = run_promotion(job, click.echo)
        click.echo(f"\n{outcome.card}\n")
        number = f"{name} version {outcome.version.version}"
        click.echo(f"{outcome.verdict}: {number}{''.join(f', {f}' for f in outcome.faults)}")
        return int(outcome.verdict == REFUSED)

    code: list[int] = []
    with_errors(lambda: code.append(run()))
    raise SystemExit(code[0])


@click.command(
    epilog="""
    \b
    Example:
      ocp-mamba rollback
    """
)
@NAME_OPTION
@STORE_OPTION
def rollback(name: str, store: str | None) -> None:
    """Swap the champion and the previous champion; no model is loaded.

    The model for people follows.
    """

    def run() -> None:
        from ocp_mamba.tracking.registry.aliases import aliases_of, roll_back
        from ocp_mamba.tracking.registry.text import follow_aliases
        from ocp_mamba.tracking.store import store_errors, use_store

        with store_errors(use_store(store)):
            aliases_of(name)  # opens the store, for which MLflow imports libraries for seconds
            started = time.perf_counter()
            champion, previous = roll_back(name)
            seconds = time.perf_counter() - started
            follow_aliases(name)
        click.echo(
            f"champion of {name} is version {champion} again, previous is version {previous}; "
            f"changed in {seconds:.2f} s"
        )

    with_errors(run)
