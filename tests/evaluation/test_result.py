from dataclasses import replace

import pytest
from data_maker import make_dataset
from evaluated import evaluate_baselines

from ocp_mamba.evaluation import names
from ocp_mamba.evaluation.result import comparable_keys, paired_difference


@pytest.fixture(scope="module")
def ridge():
    return evaluate_baselines(make_dataset())["ridge"]


@pytest.mark.parametrize(
    ("key", "metrics"),
    [
        ("pool_size", (names.COSINE, names.P1, names.ECHO)),
        ("index", (names.P1, names.ECHO)),
        ("echo_encoder", (names.ECHO,)),
    ],
)
def test_only_what_a_metric_depends_on_must_be_equal(ridge, key, metrics):
    other = replace(ridge, **{key: "another"})
    for metric in (names.COSINE, names.P1, names.ECHO):
        assert (key in comparable_keys(metric)) == (metric in metrics)
        if metric in metrics:
            with pytest.raises(ValueError, match=f"differ in {key}"):
                paired_difference(ridge, other, metric)
        else:
            assert paired_difference(ridge, other, metric).value == 0
