"""Tables from results; knows no tracker and no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.training.history import EpochRecord


def epoch_table(history: Sequence[EpochRecord]) -> str:
    """Return the epochs as a table: cosine, retrieval, trend, loss, seconds; * marks the best."""
    best = max((r.epoch for r in history if r.is_best), default=None)
    rows = [
        [
            f"{r.epoch}{'*' if r.epoch == best else ''}",
            r.val["next_vec_cosine"],
            r.val.get("retrieval_p1"),
            r.improvement_trend,
            r.losses["total"],
            r.seconds,
        ]
        for r in history
    ]
    headers = ["epoch", "val cosine", "val P@1", "trend", "train loss", "seconds"]
    floats = ("", ".4f", ".4f", "+.4f", ".4f", ".1f")
    return tabulate(rows, headers=headers, floatfmt=floats, missingval="-")


def baseline_table(evaluated: Mapping[str, Evaluation]) -> str:
    """Return one row a predictor: cosine and P@1, overall and on unseen transitions.

    The last line says what the figures were taken over: a P@1 means nothing without its pool.
    """
    columns = {
        "cosine": "next_vec_cosine",
        "P@1": "faiss_retrieval_p1",
        "cosine, unseen": "unseen/next_vec_cosine",
        "P@1, unseen": "unseen/faiss_retrieval_p1",
    }
    rows = [
        [
            name,
            *(str(e.figures[key]) if key in e.figures else "not run" for key in columns.values()),
        ]
        for name, e in evaluated.items()
    ]
    first = next(iter(evaluated.values()))
    unseen = first.figures.get("unseen/next_vec_cosine")
    note = (
        f"{first.split} split: {first.n_examples:,} sequences of {first.n_chains:,} chains in "
        f"{first.n_families:,} families, {unseen.n if unseen else 0:,} unseen transitions; "
        f"pool {first.pool_size:,} concepts, chance P@1 {first.chance_p1:.5f}; "
        "[95% interval, by family]"
    )
    if first.sample:
        note += f"\nevaluated on {first.sample}"
    table = tabulate(rows, headers=["predictor", *columns], disable_numparse=True)
    return f"{table}\n{note}"


def result_table(
    numbers: Mapping[str, float], gates: Mapping[str, str], shown: Sequence[str]
) -> str:
    """Return headline figures with their intervals, then each gate's verdict, as two tables.

    Args:
        numbers: figures by name, with ``interval/<name>_low`` and ``_high`` where there are any.
        gates: verdicts by name.
        shown: the figures to show, in order; one that is absent is shown as ``not-run``.
    """
    rows = []
    for name in shown:
        value = numbers.get(name)
        low, high = (numbers.get(f"interval/{name}_{end}") for end in ("low", "high"))
        interval = "" if low is None or high is None else f"{low:.4f} to {high:.4f}"
        rows.append([name, "not-run" if value is None else f"{value:.4f}", interval])
    figures = tabulate(rows, headers=["figure", "value", "95% interval"], disable_numparse=True)
    return figures + "\n\n" + tabulate(list(gates.items()), headers=["gate", "verdict"])
