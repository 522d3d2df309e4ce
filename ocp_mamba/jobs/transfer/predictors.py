"""The rows of the transfer table: who predicts, on what each was fitted, and their evaluations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ocp_mamba.baselines.simple import (
    ContextMean,
    GlobalMean,
    NearestNeighbour,
    Persistence,
    Predictor,
    Ridge,
)
from ocp_mamba.data.analysis.learnt import learnt_from
from ocp_mamba.data.analysis.train_chains import joined_train
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.exposure import TrainedOn, exposure_of
from ocp_mamba.evaluation.result import Evaluation
from ocp_mamba.jobs.transfer.residual import (
    Interpolated,
    best_weights,
    new_targets,
    residual_ridge,
)
from ocp_mamba.reports.rows import Row

FITTED: Mapping[str, Callable[[Dataset], Predictor]] = {
    "global_mean": GlobalMean,
    "ridge": Ridge,
    "nearest_neighbour": NearestNeighbour,
}
"""The baselines that learn from a train split, by name."""

MODEL = "model"
SOURCE, NEW, BOTH = "source", "new", "both"


@dataclass(frozen=True)
class Residual:
    """The predictors in residual form.

    Attributes:
        weights: of the model, the last vector and the context's mean, for `Interpolated`.
        others: those that do not depend on the model, by the name of their row.
        chosen_by: what of the source's val split their settings were chosen by.
    """

    weights: tuple[float, float, float]
    others: Mapping[str, Predictor]
    chosen_by: str


def residual_forms(model: Predictor, source: Dataset) -> Residual:
    """Choose the settings of the residual forms on the source's val split, and fit them."""
    chosen, name = new_targets(source)
    context = Interpolated(Persistence(), best_weights(None, source, chosen))
    return Residual(
        best_weights(model, source, chosen),
        {
            "last vector and context mean": context,
            f"residual ridge ({SOURCE})": residual_ridge(source, chosen),
        },
        f"{int(chosen.sum()):,} sequences of the source's val split ({name})",
    )


class Evaluator:
    """Evaluates predictors on one split of the new dataset."""

    def __init__(self, new: Dataset, split: str, tell: Callable[[str], None]) -> None:
        """Share one index; ``tell`` is told what is evaluated, each time."""
        self._new, self._split, self._tell = new, split, tell
        self._index = BankIndex(new.bank)

    def evaluate(self, name: str, predictor: Predictor, trained_on: TrainedOn) -> Evaluation:
        """Evaluate a predictor, with the strata of what the model learnt."""
        self._tell(f"evaluating {name}")
        return evaluate(
            predictor,
            self._new,
            self._split,
            name=name,
            index=self._index,
            trained_on=trained_on,
            diagnostics=False,
        )

    def row(self, name: str, predictors: Sequence[Predictor], trained_on: TrainedOn) -> Row:
        """Evaluate one predictor for each seed, or one alone."""
        return Row(name, [self.evaluate(name, p, trained_on) for p in predictors])

    def again(self, row: Row, trained_on: TrainedOn) -> Row:
        """The same predictions in the strata of what the model has learnt by now."""
        exposure, members = exposure_of(self._new, self._split, trained_on)
        changed = [
            replace(e, strata=members, exposure=exposure, figures={}) for e in row.evaluations
        ]
        return replace(row, evaluations=changed)

    def fixed(self, source: Dataset, residual: Residual | None, trained_on: TrainedOn) -> list[Row]:
        """The rows that no chain of the new dataset changes."""
        predictors: dict[str, Predictor] = {
            "persistence": Persistence(),
            "context_mean": ContextMean(),
            **{f"{name} ({SOURCE})": fit(source) for name, fit in FITTED.items()},
            **(residual.others if residual else {}),
        }
        return [self.row(name, [p], trained_on) for name, p in predictors.items()]

    def fitted(self, source: Dataset, few: Sequence[Dataset], trained_on: TrainedOn) -> list[Row]:
        """The baselines fitted on a few chains, alone and together with the source's."""
        rows: list[Row] = []
        if not few:
            return rows
        both = [joined_train(source, part) for part in few]
        for kind, parts in ((NEW, few), (BOTH, both)):
            for name, fit in FITTED.items():
                rows.append(self.row(f"{name} ({kind})", [fit(part) for part in parts], trained_on))
        return rows


def now_learnt(before: TrainedOn, few: Sequence[Dataset], min_context: int) -> TrainedOn:
    """What the models of all seeds have learnt together, after their chains of the new dataset."""
    learnt = before.learnt
    if learnt is None or not few:
        return before
    for part in few:
        learnt = learnt.joined(learnt_from(part, min_context))
    chains = sum(len(part.chains_in("train")) for part in few)
    words = f"{before.words}, and {chains:,} chains of the new dataset"
    return TrainedOn(words, learnt, before.proven)
