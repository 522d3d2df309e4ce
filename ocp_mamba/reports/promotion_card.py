"""The card of a registered version: why it was promoted or refused, as a page of Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports.tables import COLUMNS, FIGURES, GITHUB, Content, Table
from ocp_mamba.stats import Figure


@dataclass(frozen=True)
class Card:
    """What is said of one attempt to promote a version.

    Attributes:
        verdict: one sentence.
        reasons: why, one sentence each; each begins with the name of a fault, if there is one.
        facts: what else to say, by name.
        evaluation: of the version; None where it did not come to that.
        champion: evaluation of the champion on the same examples; None without a champion.
        differences: version minus champion, by column of `tables.COLUMNS`.
        baselines: evaluations of the baselines, by name.
        gates: each gate's verdict now.
    """

    verdict: str
    reasons: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    champion: Evaluation | None = None
    differences: Mapping[str, Figure] = field(default_factory=dict)
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)

    def to_markdown(self) -> str:
        """Return the card; the most important lines come first, because MLflow cuts long ones."""
        parts = [f"**{self.verdict}**"]
        if self.reasons:
            parts.append("\n".join(f"- {reason}" for reason in self.reasons))
        if self.evaluation is not None:
            parts += [_table(self._metrics()), _computed_on(self.evaluation)]
        else:
            parts.append("Metrics, baselines and gates: not-run.")
        if self.gates:
            rows = [[name, verdict] for name, verdict in self.gates.items()]
            parts.append(_table(Table(["gate", "verdict"], rows)))
        parts.append("\n".join(f"- {name}: {value}" for name, value in self.facts.items()))
        return "\n\n".join(parts)

    def _metrics(self) -> Table:
        """The version, the champion, their difference, and the baselines, a row each."""
        assert self.evaluation is not None
        rows: list[Sequence[Content]] = [_row("this version", self.evaluation)]
        if self.champion is not None:
            rows.append(_row("champion", self.champion))
            rows.append(["difference", *(self.differences[c].text("+.3f") for c in COLUMNS)])
        rows += [_row(name, evaluation) for name, evaluation in self.baselines.items()]
        return Table(["predictor", *COLUMNS], rows)


def _row(name: str, evaluation: Evaluation) -> Sequence[Content]:
    return [name, *(evaluation.figures.get(key) for key in FIGURES.values())]


def _computed_on(evaluation: Evaluation) -> str:
    n = {c: evaluation.figures[key].n for c, key in FIGURES.items() if key in evaluation.figures}
    unseen = n.get("cosine, unseen", 0)
    return (
        f"n = {evaluation.n_examples:,} {evaluation.split} sequences of {evaluation.n_families:,} "
        f"families, {unseen:,} of them unseen transitions; pool {evaluation.pool_size:,} concepts, "
        f"chance P@1 {evaluation.chance_p1:.5f}; [95% interval, by family]; metrics version "
        f"{evaluation.metrics_version}"
    )


def _table(table: Table) -> str:
    """A table in Markdown without the spaces and dashes that only align it.

    MLflow's page draws cells without a distance: two spaces that do not break hold them apart.
    """
    text = re.sub(r"-{3,}", "---", re.sub(r" {2,}", " ", table.to_text(GITHUB)))
    return text.replace(" |", "\N{NO-BREAK SPACE}" * 2 + " |")
