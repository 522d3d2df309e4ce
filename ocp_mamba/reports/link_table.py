"""The table of the benchmark of link prediction: rows over seeds, with intervals and strata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from ocp_mamba.link_prediction.queries import Queries
from ocp_mamba.link_prediction.ranking import MASKED, MASKS, METRICS, Ranks, difference, figure
from ocp_mamba.link_prediction.rows import OURS, Published
from ocp_mamba.reports.findings import listed
from ocp_mamba.reports.tables import BEST, GITHUB, Cell, Content, Table
from ocp_mamba.stats import Figure

LABELS = {"hits_at_1": "Hits@1", "hits_at_3": "Hits@3", "hits_at_10": "Hits@10", "mrr": "MRR"}
NOT_RUN = "not-run"
HITS = "hits_at_1"


@dataclass(frozen=True)
class RankedRow:
    """A row: its ranks of each seed, or none where it was not run.

    Attributes:
        name: of the row.
        role: see `link_prediction.rows.Row`.
        ranks: of each seed that was run; one for a row without training.
        seeds: those seeds; empty for a row without training.
        parameters: of the model; None for a row without training.
        seconds: wall-clock of one training, the mean over seeds.
        chosen: what dev has chosen, for a person.
    """

    name: str
    role: str
    ranks: Sequence[Ranks] = ()
    seeds: Sequence[int] = ()
    parameters: int | None = None
    seconds: float | None = None
    chosen: Mapping[str, float] = field(default_factory=dict)

    def array(self, mask: str) -> np.ndarray:
        """Return the ranks with a mask, ``(S, Q)``."""
        return np.stack([ranks.of(mask) for ranks in self.ranks])


@dataclass(frozen=True)
class LinkTable:
    """All rows over the same queries.

    Attributes:
        rows: in their order.
        queries: with the strata.
        split: dev or test.
        published: figures of others.
        facts: what else to say below the table, by name.
    """

    rows: Sequence[RankedRow]
    queries: Queries
    split: str
    published: Sequence[Published]
    facts: Mapping[str, str]

    @property
    def ran(self) -> list[RankedRow]:
        """The rows that were run."""
        return [row for row in self.rows if row.ranks]


def to_markdown(table: LinkTable) -> str:
    """Return the tables with both masks, the strata, the leads over the rows, and the notes."""
    parts = [_main(table, mask) for mask in MASKS]
    parts += [_strata(table), *_leads(table), _note(table)]
    return "\n\n".join(parts)


def _main(table: LinkTable, mask: str) -> str:
    rows: list[list[Content]] = []
    for row in table.rows:
        name = Cell(row.name, kind=BEST if row.role == OURS else "")
        if not row.ranks:
            rows.append([name, row.role, NOT_RUN])
            continue
        ranks = row.array(mask)
        rows.append(
            [
                name,
                row.role,
                *(figure(ranks, metric) for metric in METRICS),
                ", ".join(map(str, row.seeds)),
                "" if row.parameters is None else f"{row.parameters:,}",
                "" if row.seconds is None else f"{row.seconds / 60:.1f}",
            ]
        )
    if mask != MASKED:
        rows += [
            [
                f"{peer.name} (published, not run here)",
                "peer",
                *(f"{peer.figures[m]:.3f}" if m in peer.figures else "" for m in METRICS),
            ]
            for peer in table.published
            if table.split == "test"
        ]
    headers = [f"{table.split}, {mask}", "role", *LABELS.values(), "seeds", "parameters", "minutes"]
    return Table(headers, rows).to_text(GITHUB)


def _strata(table: LinkTable) -> str:
    rows: list[list[Content]] = [
        [
            Cell(row.name, kind=BEST if row.role == OURS else ""),
            *(figure(row.array(MASKED), HITS, kept) for kept in table.queries.strata.values()),
        ]
        for row in table.ran
    ]
    headers = [f"{name} ({int(kept.sum()):,})" for name, kept in table.queries.strata.items()]
    return Table([f"Hits@1, {MASKED}", *headers], rows).to_text(GITHUB)


def _leads(table: LinkTable) -> list[str]:
    """For each of our rows the paired difference of its Hits@1 to every other row."""
    ours = [row for row in table.ran if row.role == OURS]
    others = table.ran
    if not ours or len(others) < 2:
        return []
    rows: list[list[Content]] = [
        [
            other.name,
            *("" if other is row else Cell(lead(row, other), form="+.3f") for row in ours),
        ]
        for other in others
    ]
    headers = [f"Hits@1, {MASKED}, minus the row's", *(row.name for row in ours)]
    return [Table(headers, rows).to_text(GITHUB)]


def lead(ours: RankedRow, other: RankedRow) -> Figure:
    """Return the paired difference of the masked Hits@1, ours minus the other's."""
    return difference(ours.array(MASKED), other.array(MASKED), HITS)


def _note(table: LinkTable) -> str:
    seeds = sorted({seed for row in table.ran for seed in row.seeds})
    facts = "".join(f"; {name} {value}" for name, value in table.facts.items())
    chosen = "".join(
        f"; {row.name}: " + ", ".join(f"{k} {v:g}" for k, v in row.chosen.items())
        for row in table.ran
        if row.chosen
    )
    sources = "".join(f" {peer.name}: {peer.source}." for peer in table.published)
    return (
        f"{table.split} split: {len(table.queries):,} hypernym queries, each ranked among all "
        f"entities, filtered; {_seeds(seeds)}"
        f"{facts}. Chosen on dev: the epoch of each training{chosen}. Intervals are 95%, by "
        "bootstrap over queries, and over seeds where a row has several; differences are paired "
        f"by query.{sources}"
    )


def _seeds(seeds: Sequence[int]) -> str:
    if not seeds:
        return "nothing was trained"
    if len(seeds) == 1:
        return (
            f"one seed of training, {seeds[0]}: how much another one would change is not in the "
            "intervals"
        )
    return f"trained rows are means over their seeds, of {listed([str(seed) for seed in seeds])}"


def to_dict(table: LinkTable) -> dict[str, Any]:
    """Return the table as plain values."""
    return {
        "split": table.split,
        "queries": len(table.queries),
        "facts": dict(table.facts),
        "rows": [
            {
                "row": row.name,
                "role": row.role,
                "state": "run" if row.ranks else NOT_RUN,
                "seeds": list(row.seeds),
                "parameters": row.parameters,
                "seconds": row.seconds,
                "chosen": dict(row.chosen),
                "figures": figures(row, table.queries) if row.ranks else {},
            }
            for row in table.rows
        ],
        "published, not run here": [asdict(peer) for peer in table.published],
    }


def figures(row: RankedRow, queries: Queries) -> dict[str, dict[str, Any]]:
    """Return each metric by its name, with both masks and in the strata, as plain values."""
    found: dict[str, Figure] = {}
    for mask in MASKS:
        for metric in METRICS:
            found[f"{mask}/{metric}"] = figure(row.array(mask), metric)
            for stratum, kept in queries.strata.items():
                found[f"{mask}/{stratum}/{metric}"] = figure(row.array(mask), metric, kept)
    return {name: asdict(value) for name, value in found.items()}
