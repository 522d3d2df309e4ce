"""What is timed and checked is what is served: a model without training's kernels."""

import pytest
from data_maker import TINY, make_dataset

from ocp_mamba.config import ModelConfig
from ocp_mamba.evaluation import latency
from ocp_mamba.jobs.train import _same_predictions
from ocp_mamba.kernels import cpu
from ocp_mamba.model.lvm import OCPMambaLVM


class Watched(OCPMambaLVM):
    """Notes for each forward pass whether the kernels were in use; computes nothing."""

    def __init__(self):
        super().__init__(ModelConfig(**TINY))
        self.seen = []

    def predict_all(self, seq_vectors, *args, **kwargs):
        self.seen.append(cpu.in_use())
        return seq_vectors

    def forward(self, seq_vectors, *args, **kwargs):
        return self.predict_all(seq_vectors)[:, -1]

    def build_model(self):
        return self


@pytest.fixture(autouse=True)
def after_a_training(monkeypatch):
    """The kernels are left on, as a training on a CPU leaves them."""
    monkeypatch.setattr(cpu, "_in_use", True)


def test_latency_is_measured_without_the_kernels_of_training():
    model = Watched()
    latency.inference_latency(model)
    assert model.seen == [False] * (latency.WARMUP + latency.RUNS)
    assert cpu.in_use(), "as before"


def test_the_saved_file_is_checked_without_the_kernels_of_training():
    model = Watched()
    assert _same_predictions(model, model, make_dataset())
    assert model.seen == [False, False]
    assert cpu.in_use(), "as before"


def test_kernels_are_as_before_where_the_block_fails():
    with pytest.raises(ZeroDivisionError), cpu.kernels_off():
        raise ZeroDivisionError
    assert cpu.in_use()
