"""The report of one evaluation as a self-contained HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.reports import plots
from ocp_mamba.reports.findings import COSINE, P1, differences, outcome, statements
from ocp_mamba.reports.html import facts, figure_cell, image, page, section, table, tag, text
from ocp_mamba.stats import Figure
from ocp_mamba.training.history import EpochRecord

HEADLINE = {
    "cosine": COSINE,
    "P@1": P1,
    "cosine, unseen": f"unseen/{COSINE}",
    "P@1, unseen": f"unseen/{P1}",
    "P@10": "faiss_retrieval_p10",
    "MRR": "mrr",
    "margin": "margin",
    "echo loop": "echo_loop_similarity",
}
TONES = {"beats": "good", "loses to": "bad", "ties with": "open"}
EXAMPLES, SHOWN = 5, 5


@dataclass(frozen=True)
class Report:
    """What a page is made of.

    Attributes:
        title: the page's title.
        evaluated: the evaluation.
        dataset: what it was evaluated on; its texts are shown.
        baselines: evaluations of the baselines on the same examples; may be empty.
        gates: verdicts by name.
        facts: more to say at the top, by name: the run, the training time.
        history: the epochs of a training; empty for an evaluation alone.
        warnings: what the leak report warns of; None where none was made.
        seed: draws the random examples.
    """

    title: str
    evaluated: Evaluation
    dataset: Dataset
    baselines: Mapping[str, Evaluation] = field(default_factory=dict)
    gates: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    history: Sequence[EpochRecord] = ()
    warnings: Sequence[str] | None = None
    seed: int = 0

    @property
    def all_evaluated(self) -> dict[str, Evaluation]:
        """The model first, then its baselines."""
        return {self.evaluated.predictor: self.evaluated} | {
            name: e for name, e in self.baselines.items() if name != self.evaluated.predictor
        }


def html_report(report: Report) -> str:
    """Return the whole page; it fetches nothing and needs no script.

    Raises:
        ValueError: a baseline was not evaluated on the same examples.
    """
    return page(
        report.title,
        _head(report),
        _verdict(report),
        section("Headline figures", _headline_table(report)),
        section("Model minus baseline", _difference_table(report)),
        section("Gates", _gate_table(report.gates)),
        section("Warnings about the data", _warnings(report.warnings)),
        *_drawings(report),
        section("Examples", *_examples(report)),
        section("Every figure", _every_figure(report.evaluated)),
    )


def write_evaluation(report: Report, folder: Path) -> list[Path]:
    """Write ``report.html`` and what `write_figures` writes; returns the files, the page first."""
    figures = write_figures(report.evaluated, folder)
    path = folder / "report.html"
    path.write_text(html_report(report), encoding="utf-8")
    return [path, *figures]


def write_figures(evaluated: Evaluation, folder: Path) -> list[Path]:
    """Write an evaluation's figures, and the numbers behind them, by which it can be compared.

    Args:
        evaluated: the evaluation.
        folder: where to write; made where it does not exist.

    Returns:
        ``evaluation.json``, the figures; and ``per_example.npz``: each metric, ``chains``,
        ``families``, and each stratum's mask as ``stratum/<name>``, in the order of
        ``dataset.examples(split)``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "evaluation.json", folder / "per_example.npz"]
    files[0].write_text(json.dumps(evaluated.to_dict(), indent=1) + "\n", encoding="utf-8")
    arrays: dict[str, np.ndarray] = {
        **{name: values.astype(np.float32) for name, values in evaluated.per_example.items()},
        **{f"stratum/{name}": mask for name, mask in evaluated.strata.items()},
    }
    groups = {"chains": evaluated.chains, "families": evaluated.families}
    np.savez_compressed(files[1], allow_pickle=False, **groups, **arrays)
    return files


def _head(report: Report) -> str:
    evaluated, encoder = report.evaluated, report.dataset.meta.get("encoder", {})
    values = {
        "evaluated": evaluated.predictor,
        "split": evaluated.split,
        "sequences": f"{evaluated.n_examples:,} of {evaluated.n_chains:,} chains",
        "families": f"{evaluated.n_families:,}",
        "retrieval pool": f"{evaluated.pool_size:,} concepts",
        "P@1 by chance": f"{evaluated.chance_p1:.5f}",
        "metric version": evaluated.metrics_version,
        "encoder": str(encoder.get("name", "unknown")),
        "encoder weights": str(encoder.get("weight_hash", "unknown"))[:16],
        "echo loop encodes by": evaluated.echo_encoder,
        "dataset fingerprint": evaluated.dataset_fingerprint,
        **({"evaluated on": str(evaluated.sample)} if evaluated.sample else {}),
        **report.facts,
    }
    return f"<h1>{escape(report.title)}</h1>\n" + facts(values)


def _verdict(report: Report) -> str:
    found = statements(report.evaluated, report.baselines, report.dataset)
    if not found:
        return section(
            "Verdict", text("There are no sequences in this split: nothing was evaluated.")
        )
    failed = [name for name, verdict in report.gates.items() if verdict == "fail"]
    closing = f" Failed gates: {', '.join(failed)}." if failed else ""
    cards = "".join(
        f'<div class="card {s.tone}">{escape(s.question)}<b>{escape(s.answer)}</b>'
        f"<small>{escape(s.evidence)}</small></div>"
        for s in found
    )
    words = " ".join(s.sentence for s in found) + closing
    return section("Verdict", text(words, "lead"), f'<div class="cards">{cards}</div>')


def _headline_table(report: Report) -> str:
    evaluated = report.all_evaluated
    columns = {h: m for h, m in HEADLINE.items() if m in report.evaluated.figures}
    best = {m: _best(evaluated, m) for m in columns.values()}
    rows = [
        [
            escape(name),
            *(figure_cell(e.figures.get(m), best=name == best[m]) for m in columns.values()),
        ]
        for name, e in evaluated.items()
    ]
    unseen = report.evaluated.figures.get(f"unseen/{COSINE}")
    caption = (
        "[95% interval, bootstrap by family]; bold: highest. Margin: cosine to the next vector "
        "minus cosine to the last one. P@k and MRR over "
        f"{_pool(report.evaluated)} concepts. {unseen.n if unseen else 0:,} transitions (last "
        "concept, next concept) do not occur in train: unseen."
    )
    return table(["", *columns], rows, caption, ours=0)


def _pool(evaluated: Evaluation) -> str:
    if evaluated.sample is None:
        return f"the whole bank of {evaluated.pool_size:,}"
    return f"a pool of {evaluated.pool_size:,} of the bank's {evaluated.sample.concepts[1]:,}"


def _best(evaluated: Mapping[str, Evaluation], metric: str) -> str:
    values = {n: e.figures[metric].value for n, e in evaluated.items() if metric in e.figures}
    known = {n: v for n, v in values.items() if v is not None}
    return max(known, key=known.__getitem__, default="")


def _difference_table(report: Report) -> str:
    evaluated = report.evaluated
    if not report.baselines or evaluated.n_examples == 0:
        return ""
    columns = {
        f"{label}{where}": differences(evaluated, report.baselines, metric, stratum)
        for where, stratum in (("", None), (", unseen", "unseen"))
        for label, metric in (("cosine", COSINE), ("P@1", P1))
    }
    rows = [
        [escape(name), *(_difference_cell(gains[name]) for gains in columns.values())]
        for name in report.baselines
    ]
    caption = (
        "Paired over the same sequences. The model beats or loses to a baseline where the 95% "
        "interval lies off zero; else they cannot be told apart."
    )
    return table(["against", *columns], rows, caption)


def _difference_cell(gain: Figure) -> str:
    if gain.value is None:
        return figure_cell(gain)
    said = outcome(gain)
    words = {"beats": "better", "loses to": "worse", "ties with": "no telling"}[said]
    return f'{figure_cell(gain, signed=True)}<span class="{TONES[said]}">{words}</span>'


def _gate_table(gates: Mapping[str, str]) -> str:
    if not gates:
        return ""
    rows = [[f"<code>{escape(name)}</code>", tag(verdict)] for name, verdict in gates.items()]
    return table(["gate", "verdict"], rows, "Definitions: docs/metrics.md of the project.")


def _warnings(warnings: Sequence[str] | None) -> str:
    if warnings is None:
        return text("No leak report was made for this evaluation.", "soft")
    if not warnings:
        return text("None: no sequence stands in two splits, and nothing else was found.", "good")
    return "<ul>" + "".join(f"<li>{escape(w)}</li>" for w in warnings) + "</ul>"


def _drawings(report: Report) -> Iterator[str]:
    """The plots, each in its own box."""
    if report.history:
        drawn = plots.epochs_figure(report.history, report.baselines)
        alt = "validation cosine and P@1 per epoch with a line for each baseline"
        yield section("Training", image(drawn, alt))
    evaluated = report.all_evaluated
    if report.evaluated.n_examples == 0:
        return
    yield section(
        "Seen and unseen",
        image(plots.strata_figure(evaluated), "cosine and P@1 per stratum with intervals"),
        text(
            "seen: the transition is a step of a train chain. unseen: it is not. unseen target: no "
            "step of a train chain leads to the next concept.",
            "soft",
        ),
    )
    yield section(
        "Rank of the truth",
        image(plots.rank_figure(evaluated), "histogram of the rank of the true next concept"),
    )
    positions = report.dataset.examples(report.evaluated.split).position
    drawn = plots.position_figure(evaluated, positions)
    yield section("Length of the context", image(drawn, "cosine and P@1 by context length"))


def _examples(report: Report) -> Iterator[str]:
    """Tables of the random, the worst and the best examples."""
    evaluated, dataset = report.evaluated, report.dataset
    if evaluated.n_examples == 0:
        return
    cosines = evaluated.per_example[COSINE]
    rng = np.random.default_rng(report.seed)
    order = np.argsort(-cosines, kind="stable")
    groups = {
        f"Drawn at random (seed {report.seed})": rng.permutation(evaluated.n_examples),
        "Best of the unseen transitions, by cosine": order[evaluated.strata["unseen"][order]],
        "Worst, by cosine": order[::-1],
        "Best, by cosine": order,
    }
    targets = dataset.examples(evaluated.split).target
    for title, candidates in groups.items():
        chosen = _distinct(candidates, targets)
        if len(chosen):
            headers = ["context", "truth", f"predicted, top {SHOWN}", "cosine", "rank"]
            yield f"<h3>{escape(title)}</h3>"
            yield table(headers, [_example(report, int(i)) for i in chosen], kind="examples")


def _distinct(candidates: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The first few candidates with different targets."""
    _, first = np.unique(targets[candidates], return_index=True)
    return candidates[np.sort(first)[:EXAMPLES]]


def _example(report: Report, i: int) -> list[str]:
    evaluated, dataset = report.evaluated, report.dataset
    examples = dataset.examples(evaluated.split)
    context = dataset.chain(int(examples.chain[i]))[: examples.position[i]]
    truth = int(examples.target[i])
    names = [escape(str(dataset.texts[c])) for c in evaluated.found[i, :SHOWN]]
    items = "".join(
        f'<li class="hit">{n}</li>' if c == truth else f"<li>{n}</li>"
        for c, n in zip(evaluated.found[i, :SHOWN], names, strict=True)
    )
    return [
        " &rarr; ".join(escape(str(dataset.texts[c])) for c in context),
        f"<b>{escape(str(dataset.texts[truth]))}</b>",
        f"<ol>{items}</ol>",
        f"{evaluated.per_example[COSINE][i]:.3f}",
        f"{int(evaluated.per_example['rank'][i]):,}",
    ]


def _every_figure(evaluated: Evaluation) -> str:
    rows = [
        [f"<code>{escape(name)}</code>", figure_cell(figure), f"{figure.n:,}"]
        for name, figure in evaluated.figures.items()
    ]
    rows += [
        [f"<code>{escape(name)}</code>", f"{value:.4g}", ""]
        for name, value in evaluated.scalars.items()
    ]
    listed = table(["", "value", "n"], rows)
    return f"<details><summary>{len(rows)} figures</summary>{listed}</details>"
