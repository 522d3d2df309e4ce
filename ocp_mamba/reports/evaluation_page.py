"""The report of one evaluation as a self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation import gates, names
from ocp_mamba.evaluation.names import COSINE
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports import plots
from ocp_mamba.reports.findings import BAD, GOOD, OPEN, differences, outcome, statements
from ocp_mamba.reports.html import render
from ocp_mamba.reports.tables import (
    BEST,
    COLUMNS,
    FIGURES,
    GATE_COLUMNS,
    Cell,
    Content,
    Table,
)
from ocp_mamba.stats import Figure
from ocp_mamba.training.history import EpochRecord

HEADLINE = {
    **FIGURES,
    "P@10": names.P10,
    "MRR": names.MRR,
    "margin": names.MARGIN,
    "echo loop": names.ECHO,
}
GATE_TONES = {gates.PASS: GOOD, gates.FAIL: BAD, gates.NOT_RUN: OPEN}
DIFFERENCES = {
    "beats": (GOOD, "beats it"),
    "loses to": (BAD, "loses to it"),
    "ties with": (OPEN, "ties with it"),
}
"""The tone of a difference by its outcome, and what the page calls it."""
EXAMPLES, SHOWN = 5, 5


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Attributes:
        title: the page's title.
        evaluation: the evaluation that is reported.
        dataset: what was evaluated; its texts are shown.
        baselines: evaluations of the baselines on the same examples; may be empty.
        gates: verdicts by name.
        facts: more to say at the top, by name: the run, the training time.
        history: the epochs of a training; empty for an evaluation alone.
        warnings: what the leak report warns of; None where none was made.
        seed: draws the random examples.
    """

    title: str
    evaluation: Evaluation
    dataset: Dataset
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[EpochRecord] = ()
    warnings: Sequence[str] | None = None
    seed: int = 0

    @property
    def all_evaluations(self) -> dict[str, Evaluation]:
        """The model first, then its baselines."""
        return {self.evaluation.predictor: self.evaluation} | {
            name: e for name, e in self.baselines.items() if name != self.evaluation.predictor
        }


def html_report(report: Report) -> str:
    """Return the whole page; it fetches nothing and needs no script.

    Raises:
        ValueError: a baseline was not evaluated on the same examples.
    """
    return render(
        "evaluation.html",
        title=report.title,
        facts=_facts(report),
        details=_details(report),
        statements=statements(report.evaluation, report.baselines, report.dataset),
        failed=gates.failed(report.gates),
        tables={
            "Headline metrics": _headline_table(report),
            "Model minus baseline": _difference_table(report),
            "Gates": _gate_table(report.gates),
        },
        warnings=report.warnings,
        drawings=[(title, plots.as_png(d), words) for title, d, words in _drawings(report)],
        examples=dict(_examples(report)),
        every=_every_metric(report.evaluation),
    )


def write_evaluation(report: Report, folder: Path) -> list[Path]:
    """Write ``report.html`` and what `write_figures` writes; returns the files, the page first."""
    figures = write_figures(report.evaluation, folder)
    path = folder / "report.html"
    path.write_text(html_report(report), encoding="utf-8")
    return [path, *figures]


def write_figures(evaluation: Evaluation, folder: Path) -> list[Path]:
    """Write an evaluation's figures, and the numbers behind them, by which it can be compared.

    Args:
        evaluation: what to write.
        folder: where to write; made where it does not exist.

    Returns:
        ``evaluation.json``, the figures; and ``per_example.npz``: each metric, ``chains``,
        ``families``, and each stratum's mask as ``stratum/<name>``, in the order of
        ``dataset.examples(split)``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "evaluation.json", folder / "per_example.npz"]
    files[0].write_text(json.dumps(evaluation.to_dict(), indent=1) + "\n", encoding="utf-8")
    arrays: dict[str, np.ndarray] = {
        **{name: values.astype(np.float32) for name, values in evaluation.per_example.items()},
        **{f"stratum/{name}": mask for name, mask in evaluation.strata.items()},
    }
    groups = {"chains": evaluation.chains, "families": evaluation.families}
    np.savez_compressed(files[1], allow_pickle=False, **groups, **arrays)
    return files


def _facts(report: Report) -> dict[str, str]:
    """What stands at the top of the page: words and counts."""
    evaluation = report.evaluation
    return {
        "predictor": evaluation.predictor,
        "split": evaluation.split,
        "sequences": f"{evaluation.n_examples:,} of {evaluation.n_chains:,} chains in "
        f"{evaluation.n_families:,} families",
        "retrieval pool": f"{evaluation.pool_size:,} concepts, P@1 by chance "
        f"{evaluation.chance_p1:.5f}",
        **({"evaluated on": str(evaluation.sample)} if evaluation.sample else {}),
        **report.facts,
    }


def _details(report: Report) -> Table:
    """What stands at the end of the page: hashes, versions, what the predictor learnt from."""
    evaluation, encoder = report.evaluation, report.dataset.meta.get("encoder", {})
    rows = {
        "learnt from": str(evaluation.exposure),
        "encoder": str(encoder.get("name", "unknown")),
        "echo loop encodes by": evaluation.echo_encoder,
        "metric version": evaluation.metrics_version,
        "dataset fingerprint": evaluation.dataset_fingerprint,
        "encoder weights": str(encoder.get("weight_hash", "unknown")),
    }
    return Table(["", ""], list(rows.items()))


def _headline_table(report: Report) -> Table:
    evaluations, ours = report.all_evaluations, report.evaluation
    columns = {h: m for h, m in HEADLINE.items() if m in ours.figures}
    best = {m: _best(evaluations, m) for m in columns.values()}
    rows: list[list[Content]] = [
        [
            name,
            *(
                Cell(e.figures.get(m), kind=BEST if name == best[m] else "")
                for m in columns.values()
            ),
        ]
        for name, e in evaluations.items()
    ]
    unseen = ours.figures.get(f"unseen/{COSINE}")
    pool = f"the whole bank of {ours.pool_size:,}"
    if ours.sample:
        pool = f"a pool of {ours.pool_size:,} of the bank's {ours.sample.concepts[1]:,}"
    caption = (
        "[95% interval, bootstrap by family]; bold: highest. Margin: cosine to the next vector "
        f"minus cosine to the last one. P@k and MRR over {pool} concepts. "
        f"Unseen: {unseen.n if unseen else 0:,} transitions (last concept, next concept) that were "
        "not learnt."
    )
    return Table(["", *columns], rows, caption, ours=0)


def _best(evaluations: Mapping[str, Evaluation], metric: str) -> str:
    values = {n: e.figures[metric].value for n, e in evaluations.items() if metric in e.figures}
    known = {n: v for n, v in values.items() if v is not None}
    return max(known, key=known.__getitem__, default="")


def _difference_table(report: Report) -> Table:
    rows: list[list[Content]] = []
    if report.evaluation.n_examples:
        columns = [differences(report.evaluation, report.baselines, *c) for c in COLUMNS.values()]
        rows = [
            [name, *(_difference_cell(gains[name]) for gains in columns)]
            for name in report.baselines
        ]
    caption = (
        "Paired over the same sequences. The model beats or loses to a baseline where the 95% "
        "interval does not contain zero; otherwise it ties with it."
    )
    return Table(["against", *COLUMNS], rows, caption)


def _difference_cell(gain: Figure) -> Cell:
    tone, words = DIFFERENCES[outcome(gain)]
    return Cell(gain) if gain.value is None else Cell(gain, "+.3f", tone, words)


def _gate_table(verdicts: Mapping[str, str]) -> Table:
    rows: list[list[Content]] = []
    for name, given in verdicts.items():
        verdict = gates.as_verdict(given)
        tone = f"tag {GATE_TONES.get(verdict, OPEN)}"
        words: list[Content] = [verdict.value, verdict.threshold, verdict.reason]
        rows.append([Cell(name, kind="code"), Cell(str(verdict), kind=tone), *words])
    return Table(GATE_COLUMNS, rows, "Definitions: docs/metrics.md of the project.")


def _drawings(report: Report) -> Iterator[tuple[str, Any, str]]:
    """The plots: title, drawing, and what it shows in words."""
    evaluations, evaluation = report.all_evaluations, report.evaluation
    if report.history:
        drawing = plots.epochs_figure(report.history, report.baselines)
        words = (
            "Validation cosine and P@1 per epoch, with a line for each baseline. The vertical line "
            "is the epoch that was kept, the one with the best cosine."
        )
        yield "Training", drawing, words
    if evaluation.n_examples == 0:
        return
    words = (
        "Cosine and P@1 per stratum with intervals. seen: the transition is a step of a chain that "
        "was learnt. unseen: it is not. unseen target: no such step leads to the next concept."
    )
    yield "Seen and unseen", plots.strata_figure(evaluations), words
    ranks = plots.rank_figure(evaluations)
    if ranks is not None:
        words = "Share of sequences whose true next concept is among the k nearest, for every k."
        yield "Rank of the truth", ranks, words
    positions = report.dataset.examples(evaluation.split).position
    drawing = plots.position_figure(evaluations, positions)
    yield "Length of the context", drawing, "Cosine and P@1 by the length of the context."


def _examples(report: Report) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The random, the worst and the best examples, each group with its title."""
    evaluation, dataset = report.evaluation, report.dataset
    if evaluation.n_examples == 0:
        return
    rng = np.random.default_rng(report.seed)
    order = np.argsort(-evaluation.per_example[COSINE], kind="stable")
    groups = {
        f"Drawn at random (seed {report.seed})": rng.permutation(evaluation.n_examples),
        "Best of the unseen transitions, by cosine": order[evaluation.strata["unseen"][order]],
        "Worst, by cosine": order[::-1],
        "Best, by cosine": order,
    }
    targets = dataset.examples(evaluation.split).target
    for title, candidates in groups.items():
        chosen = _distinct(candidates, targets)
        if len(chosen):
            yield title, [_example(report, int(i)) for i in chosen]


def _distinct(candidates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The first few candidates with different targets."""
    _, first = np.unique(targets[candidates], return_index=True)
    return candidates[np.sort(first)[:EXAMPLES]]


def _example(report: Report, i: int) -> dict[str, Any]:
    evaluation, dataset = report.evaluation, report.dataset
    examples = dataset.examples(evaluation.split)
    truth, found = examples.target[i], evaluation.found[i, :SHOWN]
    context = dataset.chain(int(examples.chain[i]))[: examples.position[i]]
    return {
        "context": [str(text) for text in dataset.texts[context]],
        "truth": str(dataset.texts[truth]),
        "found": [(str(dataset.texts[concept]), concept == truth) for concept in found],
        "cosine": f"{evaluation.per_example[COSINE][i]:.3f}",
        "rank": f"{int(evaluation.per_example[names.RANK][i]):,}",
    }


def _every_metric(evaluation: Evaluation) -> Table:
    rows: list[list[Content]] = [
        [Cell(name, kind="code"), figure, f"{figure.n:,}"]
        for name, figure in evaluation.figures.items()
    ]
    rows += [
        [Cell(name, kind="code"), f"{value:.4g}", ""] for name, value in evaluation.scalars.items()
    ]
    return Table(["", "value", "n"], rows)
