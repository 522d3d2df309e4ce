"""The transfer table: every predictor on a dataset that it has not seen, after k chains of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ocp_mamba.reports.baseline_table import Quality
from ocp_mamba.reports.baseline_table import to_dict as quality_dict
from ocp_mamba.reports.rows import Row, seeds_note
from ocp_mamba.reports.tables import BEST, COLUMNS, GITHUB, Cell, Content, Table

UNSEEN = tuple(column for column in COLUMNS if "unseen" in column)
WHOLE = tuple(column for column in COLUMNS if column not in UNSEEN)


@dataclass(frozen=True)
class Transfer:
    """What became of a model on another dataset.

    Attributes:
        rounds: rows and verdicts by the number of chains, ``0``, ``10`` or ``all``.
        train_chains: chains of the new dataset's train split, which ``all`` means.
        facts: what else to say below the table, by name.
    """

    rounds: Mapping[str, Quality]
    train_chains: int
    facts: Mapping[str, str]

    def winner(self, chains: str, column: str) -> Row | None:
        """The row with the highest mean in a column; None where no row has any sequence there."""
        rows = [row for row in self.rounds[chains].rows if row.figure(column).value is not None]
        return max(rows, key=lambda row: row.figure(column).value or 0.0, default=None)


def to_markdown(transfer: Transfer) -> str:
    """Return the table, what it was computed on, and who wins for each number of chains."""
    first = next(iter(transfer.rounds.values()))
    evaluation = first.model.evaluations[0]
    rows: list[list[Content]] = []
    for chains, quality in transfer.rounds.items():
        best = {column: transfer.winner(chains, column) for column in COLUMNS}
        for row in quality.rows:
            figures = {
                column: Cell(row.figure(column), kind=BEST if best[column] is row else "")
                for column in COLUMNS
            }
            unseen = row.figure(UNSEEN[0]).n
            rows.append(
                [
                    chains,
                    row.name,
                    *(figures[column] for column in WHOLE),
                    f"{unseen:,} of {evaluation.n_examples:,}",
                    *(figures[column] for column in UNSEEN),
                ]
            )
    titles = [f"P@1 in {evaluation.pool_size:,}" if c == "P@1" else c for c in WHOLE]
    headers = ["chains", "predictor", *titles, "unseen", *UNSEEN]
    table = Table(headers, rows).to_text(GITHUB)
    verdicts = "\n".join(_verdict(transfer, chains) for chains in transfer.rounds)
    return f"{table}\n\n{_note(transfer)}\n\n{verdicts}"


def _verdict(transfer: Transfer, chains: str) -> str:
    quality = transfer.rounds[chains]
    winners = []
    for column in WHOLE:
        row = transfer.winner(chains, column)
        if row is not None:
            winners.append(f"{column} {row.figure(column)} has {row.name}")
    models = "; ".join(f"{column}: {quality.verdict(column)}" for column in WHOLE)
    number = f"{transfer.train_chains} chains (all)" if chains == "all" else f"{chains} chains"
    return f"- {number}: the highest {', the highest '.join(winners)}. The model by {models}."


def _note(transfer: Transfer) -> str:
    quality = next(iter(transfer.rounds.values()))
    first = quality.model.evaluations[0]
    facts = "".join(f"; {name} {value}" for name, value in transfer.facts.items())
    return (
        f"{first.split} split of the new dataset: {first.n_examples:,} sequences of "
        f"{first.n_chains:,} chains in {first.n_families:,} families; chance P@1 "
        f"{first.chance_p1:.5f}; where chains are drawn, {seeds_note(quality.seeds)}, each seed "
        "with chains of its own; a row that does not depend on them has families alone in its "
        "interval. (source): fitted on the source's train split; (new): on the chains of the new "
        "dataset; (both): on both. Unseen: transitions that the model of no seed has learnt. Bold: "
        f"the highest mean of its number of chains. Dataset {first.dataset_fingerprint[:12]}, "
        f"metric version {first.metrics_version}{facts}."
    )


def to_dict(transfer: Transfer) -> dict[str, Any]:
    """Return the table as plain values: that of each number of chains, and who wins."""
    return {
        "facts": dict(transfer.facts),
        "train_chains": transfer.train_chains,
        "chains": {
            chains: quality_dict(quality)
            | {
                "winners": {
                    column: row.name if (row := transfer.winner(chains, column)) else None
                    for column in COLUMNS
                }
            }
            for chains, quality in transfer.rounds.items()
        },
    }
