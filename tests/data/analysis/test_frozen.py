from pathlib import Path

import numpy as np
import pytest
from data_maker import make_dataset

from ocp_mamba.baselines.simple import Persistence
from ocp_mamba.data.analysis.frozen import (
    evaluation_set,
    load_evaluation_set,
    save_evaluation_set,
)
from ocp_mamba.data.analysis.leakage import check
from ocp_mamba.data.analysis.sample import EvalLimits, SampledDataset, evaluation_part
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError
from ocp_mamba.evaluation.evaluate import evaluate


def kept_and_read(dataset: Dataset, folder: Path) -> Dataset:
    path, sample_path = folder / "evaluation.npz", folder / "sample.npz"
    save_evaluation_set(evaluation_set(dataset), path, sample_path)
    return load_evaluation_set(path, sample_path)


@pytest.mark.parametrize(
    "limits",
    [EvalLimits(), EvalLimits(sequences=15, train=40, pool=0), EvalLimits(sequences=15, pool=35)],
)
@pytest.mark.parametrize("relations", [False, True])
def test_what_is_read_again_gives_the_same_evaluation(
    tmp_path: Path, limits: EvalLimits, relations: bool
) -> None:
    whole = make_dataset(n_chains=60, n_concepts=40, relations=relations)
    dataset = evaluation_part(whole, limits)
    again = kept_and_read(dataset, tmp_path)
    assert again.n_examples("test") == 0
    assert type(again) is type(dataset)
    first, second = (evaluate(Persistence(), d, "val", name="p") for d in (dataset, again))
    assert first.n_examples > 0
    for name, figure in first.figures.items():
        assert second.figures[name] == figure
    assert second.pool_size == first.pool_size
    assert second.sample_fingerprint == first.sample_fingerprint
    pair = ("train", "val")
    assert check(again, min_context=1).pairs[pair] == check(dataset, min_context=1).pairs[pair]


def test_a_sample_keeps_what_it_shares_with_the_whole(tmp_path: Path) -> None:
    sample = evaluation_part(make_dataset(n_chains=60), EvalLimits(sequences=15, train=40))
    again = kept_and_read(sample, tmp_path)
    assert isinstance(sample, SampledDataset)
    assert isinstance(again, SampledDataset)
    assert again.sample == sample.sample
    assert again.unused == sample.unused
    assert np.array_equal(again.chains, sample.chains[sample.split != 2])


def test_a_damaged_or_foreign_sample_is_refused(tmp_path: Path) -> None:
    path, sample_path = tmp_path / "evaluation.npz", tmp_path / "sample.npz"
    dataset = evaluation_part(make_dataset(n_chains=60), EvalLimits(sequences=15, train=40))
    save_evaluation_set(evaluation_set(dataset), path, sample_path)
    evaluation_set(make_dataset(n_chains=20)).save(path)
    with pytest.raises(DatasetError, match=r"sample\.npz: is of .* chains"):
        load_evaluation_set(path, sample_path)
    sample_path.write_bytes(sample_path.read_bytes()[:100])
    with pytest.raises(DatasetError, match=r"sample\.npz: cannot be read"):
        load_evaluation_set(path, sample_path)
