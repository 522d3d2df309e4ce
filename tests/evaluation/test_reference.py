import gc

import numpy as np
import pytest
import torch
from data_maker import make_dataset

from ocp_mamba.baselines.simple import ContextMean, GlobalMean, Persistence
from ocp_mamba.data.split import families
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation import metrics, predict, reference
from ocp_mamba.evaluation.evaluate import evaluate


def test_it_is_what_each_evaluation_would_work_out():
    data = make_dataset(n_chains=120, n_concepts=80, seed=5)
    found, examples = reference.split_reference(data, "val"), data.examples("val")
    targets, last = (torch.from_numpy(data.bank[i]) for i in (examples.target, examples.last))
    untrained = predict.predict_examples(ContextMean(), data, "val")
    margin = metrics.cosine(untrained, targets) - metrics.cosine(untrained, last)
    np.testing.assert_array_equal(found.context_mean_margin, margin.numpy())
    np.testing.assert_array_equal(found.families, families(data, "val"))
    mean = data.bank[data.examples("train").target].mean(axis=0)
    np.testing.assert_allclose(found.global_mean, mean / np.linalg.norm(mean), atol=1e-6)
    evaluated = evaluate(GlobalMean(data), data, "val", name="mean")
    np.testing.assert_allclose(evaluated.per_example["cosine_to_global_mean"], 1, atol=1e-6)
    assert evaluated.scalars["target_variance"] == found.target_variance


def test_it_is_made_once_a_split_however_many_are_evaluated(monkeypatch):
    data, made = make_dataset(), []
    make = reference._make
    monkeypatch.setattr(reference, "_make", lambda d, s: made.append(s) or make(d, s))
    index = BankIndex(data.bank)
    for split in ("val", "test", "val"):
        for predictor in (Persistence(), ContextMean()):
            evaluate(predictor, data, split, name="x", index=index)
    assert made == ["val", "test"]
    evaluate(Persistence(), make_dataset(), "val", name="x")
    assert made == ["val", "test", "val"], "that of another dataset is another"


def test_it_goes_with_its_dataset():
    data = make_dataset()
    reference.split_reference(data, "val")
    kept = len(reference._MADE)
    del data
    gc.collect()
    assert len(reference._MADE) < kept


def test_an_empty_split_has_none():
    data = make_dataset(split=np.zeros(40, np.uint8))
    with pytest.raises(ValueError, match="val split has no examples"):
        reference.split_reference(data, "val")
    evaluated = evaluate(Persistence(), data, "val", name="x")
    assert (evaluated.n_examples, evaluated.n_families, evaluated.figures) == (0, 0, {})
