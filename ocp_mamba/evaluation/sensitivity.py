"""Predictions from changed contexts, and from the predictor's own predictions fed back to it.

Both need new forward passes, so both take a seeded sample of the examples.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ocp_mamba import stats
from ocp_mamba.baselines.simple import Predictor
from ocp_mamba.data.dataset import Dataset, Examples
from ocp_mamba.evaluation import metrics
from ocp_mamba.model.base import conditions
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.model.rollout import rollout as model_rollout
from ocp_mamba.stats import Figure

SAMPLE = 500
"""Most examples that are taken."""
STEPS = 5
BATCH = 128


def predict_next(
    predictor: Predictor,
    contexts: list[Tensor],
    tmd: Tensor | None,
    relations: list[Tensor] | None = None,
) -> Tensor:
    """Predict what follows each context.

    Args:
        predictor: as `Predictor`.
        contexts: float32 ``(length, D)`` each, of any lengths above 0.
        tmd: float32 ``(n, 16)``, a row for each context; None for data without TMD codes.
        relations: float32 ``(length, 2)`` each; None for data without relations.

    Returns:
        float32 ``(n, D)`` unit rows, in the order of ``contexts``.
    """
    lengths = torch.tensor([len(c) for c in contexts])
    out = torch.empty(len(contexts), contexts[0].shape[1])
    with torch.inference_mode():
        for rows in lengths.argsort(stable=True).split(BATCH):
            taken = conditions(
                predictor,
                None if tmd is None else tmd[rows],
                None if relations is None else _padded(relations, rows),
            )
            predicted = predictor.predict_all(_padded(contexts, rows), **taken)
            out[rows] = predicted[torch.arange(len(rows)), lengths[rows] - 1]
    return out


def _padded(sequences: list[Tensor], rows: Tensor) -> Tensor:
    return pad_sequence([sequences[i] for i in rows.tolist()], batch_first=True)


class Contexts:
    """The contexts of some examples of a split, with all that is needed to predict from them."""

    def __init__(
        self,
        dataset: Dataset,
        examples: Examples,
        families: np.ndarray,
        rows: np.ndarray,
    ):
        """Take the examples ``rows``, integers ``(m,)``; other arguments as `sensitivity`."""
        self.rows = rows
        self.family = families[rows]
        self.chain = examples.chain[self.rows]
        self.position = examples.position[self.rows]
        self.bank = torch.from_numpy(dataset.bank)
        self.tmd = None
        if dataset.chain_tmd is not None:
            self.tmd = torch.from_numpy(dataset.chain_tmd[self.chain])
        starts = dataset.chain_offsets[self.chain]
        contexts = zip(starts, self.position, strict=True)
        steps = [dataset.steps(start + np.arange(k)) for start, k in contexts]
        known = [torch.from_numpy(step) for step in steps if step is not None]
        self.relations = known or None
        self.ids = [
            torch.from_numpy(dataset.chain(c)[:k]).long()
            for c, k in zip(self.chain, self.position, strict=True)
        ]

    def predict(self, predictor: Predictor) -> Tensor:
        """Predict what follows each context, from the context alone: float32 ``(m, D)``."""
        contexts = [self.bank[ids] for ids in self.ids]
        return predict_next(predictor, contexts, self.tmd, self.relations)


def choose(examples: Examples, candidates: np.ndarray, seed: int) -> np.ndarray:
    """Return at most `SAMPLE` of some row numbers, in rising order.

    They are spread evenly over positions, for the cosine depends on the position more than on
    anything else; which ones is drawn by seed.
    """
    if len(candidates) <= SAMPLE:
        return candidates
    rng = np.random.default_rng(seed)
    by_position = np.lexsort((rng.random(len(candidates)), examples.position[candidates]))
    places = (np.arange(SAMPLE) + rng.random()) * len(candidates) / SAMPLE
    return np.sort(candidates[by_position[places.astype(int)]])


def sensitivity(
    predictor: Predictor,
    dataset: Dataset,
    examples: Examples,
    families: np.ndarray,
    predictions: Tensor,
    seed: int,
) -> dict[str, Figure]:
    """Cosine to the target when the context is shuffled, reversed, or cut to its last vector.

    Examples with a context of 2 concepts or more are sampled. A shuffle is a random order other
    than the true one. A predictor that knows relations is also given those of other steps of the
    sample (``relations_shuffled``), and none (``relations_hidden``).

    Args:
        predictor: what is evaluated.
        dataset: gives vectors, TMD codes and relations.
        examples: of the split.
        families: integers ``(n,)``, of `data.split.families`; intervals draw them whole.
        predictions: float32 ``(n, D)``, of the whole contexts.
        seed: draws the sample and the orders.

    Returns:
        ``sensitivity/original_cosine``; for each change ``sensitivity/<change>_cosine`` and
        ``sensitivity/<change>_drop``, the original's cosine minus it on the same examples.
    """
    chosen = choose(examples, np.flatnonzero(examples.position >= 2), seed)
    sample = Contexts(dataset, examples, families, chosen)
    targets = sample.bank[torch.from_numpy(examples.target[sample.rows]).long()]
    original = metrics.cosine(predictions[sample.rows], targets).numpy()
    figures = {"sensitivity/original_cosine": stats.bootstrap_mean(original, sample.family, seed)}
    rng = np.random.default_rng(seed)
    changes = _changed_orders(sample, rng)
    if dataset.chain_relation is not None and getattr(predictor, "n_relations", False):
        changes |= _changed_relations(sample, rng)
    for change, (contexts, relations) in changes.items():
        cosines = original
        if contexts:
            changed = predict_next(predictor, contexts, sample.tmd, relations)
            cosines = metrics.cosine(changed, targets).numpy()
        for name, values in (("cosine", cosines), ("drop", original - cosines)):
            figures[f"sensitivity/{change}_{name}"] = stats.bootstrap_mean(
                values, sample.family, seed
            )
    return figures


_Changes = dict[str, tuple[list[Tensor], list[Tensor] | None]]
"""Contexts and their relations, by the name of what was changed."""


def _changed_orders(sample: Contexts, rng: np.random.Generator) -> _Changes:
    """Other orders of each context's concepts; its relation goes where a concept goes."""
    orders = {
        "shuffled": [_shuffle(len(ids), rng) for ids in sample.ids],
        "reversed": [np.arange(len(ids))[::-1].copy() for ids in sample.ids],
        "truncated": [np.array([len(ids) - 1]) for ids in sample.ids],
    }
    changes: _Changes = {}
    for change, order in orders.items():
        rows = [torch.from_numpy(o) for o in order]
        relations = sample.relations
        if relations is not None:
            relations = [known[r] for known, r in zip(relations, rows, strict=True)]
        contexts = [sample.bank[ids[r]] for ids, r in zip(sample.ids, rows, strict=True)]
        changes[change] = contexts, relations
    return changes


def _changed_relations(sample: Contexts, rng: np.random.Generator) -> _Changes:
    """The true contexts with the relations of other steps of the sample, and with none."""
    contexts = [sample.bank[ids] for ids in sample.ids]
    shuffled = [known.clone() for known in sample.relations or []]
    if shuffled:
        steps = torch.cat([known[1:] for known in shuffled])
        steps = steps[torch.from_numpy(rng.permutation(len(steps)))]
        for known, others in zip(
            shuffled, steps.split([len(k) - 1 for k in shuffled]), strict=True
        ):
            known[1:] = others
    hidden = [torch.zeros_like(known) for known in shuffled]
    return {"relations_shuffled": (contexts, shuffled), "relations_hidden": (contexts, hidden)}


def _shuffle(length: int, rng: np.random.Generator) -> np.ndarray:
    while True:
        order = rng.permutation(length)
        if (order != np.arange(length)).any():
            return order


def rollout(
    predictor: Predictor,
    dataset: Dataset,
    examples: Examples,
    families: np.ndarray,
    predictions: Tensor,
    seed: int,
) -> dict[str, Figure]:
    """Feed each prediction back as the next input, and compare with the concept h steps ahead.

    Step 1 is the prediction itself. An example counts at step h where its chain is long enough.

    Args:
        predictor: what is evaluated.
        dataset: gives vectors and TMD codes.
        examples: of the split.
        families: integers ``(n,)``, of `data.split.families`; intervals draw them whole.
        predictions: float32 ``(n, D)``, of the whole contexts.
        seed: draws the sample.

    Returns:
        ``rollout/h1_cosine`` to ``rollout/h5_cosine``; where no chain is long enough, over n = 0.
    """
    chosen = choose(examples, np.arange(len(examples.target)), seed)
    sample = Contexts(dataset, examples, families, chosen)
    fed_back = _predict_ahead(predictor, sample, predictions[sample.rows])
    figures = {}
    for h in range(1, STEPS + 1):
        places = sample.position + h - 1
        left = np.flatnonzero(places < dataset.lengths[sample.chain])
        ahead = dataset.chain_values[dataset.chain_offsets[sample.chain[left]] + places[left]]
        truth = sample.bank[torch.from_numpy(ahead).long()]
        cosines = metrics.cosine(fed_back[torch.from_numpy(left), h - 1], truth).numpy()
        figures[f"rollout/h{h}_cosine"] = stats.bootstrap_mean(cosines, sample.family[left], seed)
    return figures


def _predict_ahead(predictor: Predictor, sample: Contexts, first: Tensor) -> Tensor:
    """Predictions 1 to `STEPS` steps ahead, float32 ``(n, STEPS, D)``; ``first`` is step 1's.

    A model with an inference cache reads each context once. Any other predictor reads contexts that
    grow by a prediction a step. By which relation a prediction follows is unknown.
    """
    contexts = [sample.bank[ids] for ids in sample.ids]
    if not contexts:
        return first[:, None].expand(-1, STEPS, -1)
    if isinstance(predictor, OCPMambaLVM):
        every = torch.arange(len(contexts))
        known = None if sample.relations is None else _padded(sample.relations, every)
        lengths = torch.tensor([len(context) for context in contexts])
        taken = conditions(predictor, sample.tmd, known)
        return model_rollout(predictor, _padded(contexts, every), STEPS, lengths=lengths, **taken)
    predicted, relations = [first], sample.relations
    while len(predicted) < STEPS:
        contexts = [torch.cat([c, v[None]]) for c, v in zip(contexts, predicted[-1], strict=True)]
        if relations is not None:
            relations = [torch.cat([known, torch.zeros(1, 2)]) for known in relations]
        predicted.append(predict_next(predictor, contexts, sample.tmd, relations))
    return torch.stack(predicted, dim=1)
