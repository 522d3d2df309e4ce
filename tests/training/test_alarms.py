from dataclasses import replace

import mlflow
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from data_maker import make_dataset

from ocp_mamba.cli.main import main
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.batches import batches
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.evaluation.evaluate import validator
from ocp_mamba.model.base import NextVectorModel
from ocp_mamba.model.build import build_model
from ocp_mamba.training.alarms import find_alarms, listing
from ocp_mamba.training.history import EpochRecord
from ocp_mamba.training.trainer import fit

CONFIG = TrainConfig()
README_RUN = {  # epoch: val cosine, val P@1, train loss, as `make run` printed them
    1: (0.8306, 0.6987, 0.3129),
    2: (0.8669, 0.7711, 0.1206),
    3: (0.8779, 0.8010, 0.0678),
    4: (0.8811, 0.8072, 0.0397),
    5: (0.8876, 0.8229, 0.0238),
    6: (0.8855, 0.8199, 0.0148),
    7: (0.8867, 0.8217, 0.0095),
    8: (0.8875, 0.8245, 0.0062),
}


def record(epoch, cosine, p1, loss, ratio=0.8, **terms):
    return EpochRecord(
        epoch=epoch,
        losses={"cosine": loss, **terms},
        lr=1e-3,
        seconds=1.0,
        examples_per_second=1.0,
        val={"next_vec_cosine": cosine, "retrieval_p1": p1, "variance_ratio": ratio},
        improvement_trend=None,
        is_best=False,
        is_last=False,
    )


def records(figures):
    return [record(epoch, *values) for epoch, values in figures.items()]


def names(history, config=CONFIG):
    return [(a.kind, a.name, a.epoch) for a in find_alarms(history, config)]


def test_the_default_run_raises_no_alarm_and_is_told_that_it_learns_by_heart():
    assert names(records(README_RUN)) == [("notice", "overfit", 8)]
    (notice,) = find_alarms(records(README_RUN), CONFIG)
    assert notice.tag == "notice.overfit"
    assert str(notice).startswith("epoch 8: validation cosine has not risen since epoch 5 (0.8876)")
    assert "from 0.0238 to 0.0062" in notice.sentence


def test_nothing_rings_before_there_are_epochs_and_the_listing_says_so():
    assert find_alarms([], CONFIG) == ()
    assert listing(()) == "alarms in training: none"


def test_a_slow_fall_of_the_loss_on_a_plateau_is_not_overfitting():
    plateau = {e: (0.9 if e == 1 else 0.899, 0.8, 0.1 - 0.005 * e) for e in range(1, 9)}
    assert names(records(plateau)) == []


@pytest.mark.parametrize(("ratio", "rings"), [(0.0, True), (0.0999, True), (0.1, False)])
def test_collapse(ratio, rings):
    history = [record(1, 0.5, 0.1, 0.5), record(2, 0.5, 0.1, 0.5, ratio)]
    assert names(history) == [("alarm", "collapse", 2)] * rings


def test_train_val_gap_needs_both_a_falling_cosine_and_a_growing_gap():
    best = record(1, 0.70, 0.4, 0.28)
    assert names([best, record(2, 0.66, 0.4, 0.20)]) == [("alarm", "train_val_gap", 2)]
    assert names([best, record(2, 0.695, 0.4, 0.20)]) == []  # validation stands
    assert names([best, record(2, 0.66, 0.4, 0.30)]) == []  # training is no better: not by heart


@pytest.mark.parametrize(
    ("weight", "infonce", "rings"),
    [(0.5, 1.0, False), (0.5, 0.019, True), (0.5, 40.0, True), (0.0, 40.0, False)],
)
def test_loss_balance_weighs_the_terms_as_training_does(weight, infonce, rings):
    config = replace(CONFIG, infonce_weight=weight)
    terms = {"infonce": infonce} if weight else {}
    found = find_alarms([record(1, 0.5, 0.1, 1.0, **terms)], config)
    assert [a.name for a in found] == ["loss_balance"] * rings
    assert all("cosine" in a.sentence and "infonce" in a.sentence for a in found)


def test_a_term_that_has_been_learnt_may_shrink():
    config = replace(CONFIG, infonce_weight=0.05)
    learnt = [
        record(epoch, 0.5, 0.1, cosine, infonce=infonce)
        for epoch, cosine, infonce in [(1, 0.3, 3.0), (2, 0.02, 0.001)]
    ]
    assert find_alarms(learnt, config) == ()
    drowned = [learnt[0], record(2, 0.5, 0.1, 0.001, infonce=1.0)]
    assert [a.epoch for a in find_alarms(drowned, config)] == [2]


def test_retrieval_that_falls_while_cosine_rises():
    figures = {1: (0.70, 0.50, 0.3), 2: (0.71, 0.49, 0.29), 3: (0.72, 0.48, 0.28)}
    assert names(records(figures)) == [("alarm", "retrieval_falls", 3)]
    rising = {e: (c, 0.6 - p, t) for e, (c, p, t) in figures.items()}
    assert names(records(rising)) == []
    assert names(records(figures)[:2]) == [], "two epochs are no trend"


def test_an_alarm_keeps_its_first_epoch_and_the_earliest_stands_first():
    history = records(README_RUN)
    history[2] = record(3, 0.8779, 0.801, 0.0678, 0.01)
    history[6] = record(7, 0.8867, 0.8217, 0.0095, 0.01)
    found = find_alarms(history, CONFIG)
    assert [a.short for a in found] == ["collapse@3", "overfit@8"]
    assert listing(found).splitlines()[0].startswith("ALARM collapse, epoch 3: the predictions'")
    assert listing(found).splitlines()[1].startswith("NOTICE overfit, epoch 8: ")


def test_an_epoch_without_a_figure_rings_nothing():
    bare = [replace(r, val={"next_vec_cosine": 0.5}) for r in records(README_RUN)]
    assert find_alarms(bare[:3], CONFIG) == ()


# --- in a real training ----------------------------------------------------------------------

TINY = ModelConfig(d_model=32, n_layers=1, headdim=16)
QUICK = TrainConfig(batch_size=16, max_epochs=2, lr=3e-3, precision="float32")


class Constant(NextVectorModel):
    """A model whose input does not count."""

    def __init__(self):
        super().__init__()
        self.row = torch.nn.Parameter(torch.randn(768))

    def predict_members(self, seq_vectors, tmd=None):
        return torch.nn.functional.normalize(self.row, dim=0).expand(1, *seq_vectors.shape)


@pytest.fixture(scope="module")
def data():
    return make_dataset(n_chains=120, n_concepts=40, seed=2)


def train(model, data, config=QUICK, **options):
    return fit(model, data, config, validate=validator(data, BankIndex(data.bank)), **options)


def test_a_collapsed_model_is_called_so_in_the_bar_and_in_every_result(data, capsys):
    seen = []
    result = train(Constant(), data, on_epoch=seen.append, progress=True)
    assert [a.short for a in result.alarms] == ["collapse@1"]
    assert [[a.name for a in r.alarms] for r in seen] == [["collapse"], ["collapse"]]
    assert "ALARM=collapse@1" in capsys.readouterr().err


def test_a_model_that_learns_is_not(data):
    torch.manual_seed(0)
    result = train(build_model(TINY), data, progress=False)
    assert "collapse" not in [a.name for a in result.alarms]
    assert 0.1 < result.history[-1].val["variance_ratio"] < 2


def test_a_term_that_is_drowned_out_is_called_so(data):
    torch.manual_seed(0)
    config = replace(QUICK, infonce_weight=50.0, max_epochs=1)
    (alarm,) = train(build_model(TINY), data, config, progress=False).alarms
    assert (alarm.name, alarm.epoch) == ("loss_balance", 1)


@pytest.fixture(scope="module")
def noise():
    """Random chains of concepts that have much in common: only their mean can be learnt."""
    plain = make_dataset(n_chains=60, n_concepts=300, seed=5)
    bank = plain.bank + 0.8 / np.sqrt(768)
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    return make_dataset(n_chains=60, n_concepts=300, seed=5, bank=bank.astype(np.float32))


def test_targets_that_mean_nothing_end_in_the_mean_and_then_in_the_gap(noise):
    torch.manual_seed(0)
    config = replace(QUICK, batch_size=4, max_epochs=20, infonce_weight=0.05)
    model = build_model(ModelConfig(d_model=128, n_layers=1, headdim=32))
    result = train(model, noise, config, progress=False)
    epochs = {a.name: a.epoch for a in result.alarms}
    assert epochs["collapse"] == 1
    assert epochs["train_val_gap"] > result.best_epoch


def test_the_run_bears_its_alarms_as_tags(noise, store, tmp_path):
    noise.save(tmp_path / "noise.npz")
    words = "train --data noise.npz --model-size tiny --n-layers 1 --batch-size 4 --quiet"
    words += " --lr 3e-3 --max-epochs 2"
    said = CliRunner().invoke(main, words.split(), catch_exceptions=False).output
    (run,) = mlflow.search_runs(
        experiment_names=["ocp_mamba"], output_format="list",
        filter_string="tags.mlflow.parentRunId IS NULL",
    )  # fmt: skip
    assert run.data.tags["alarm.collapse"].startswith("epoch 1: the predictions' variance is 0.0")
    assert f"ALARM collapse, {run.data.tags['alarm.collapse']}" in said
    assert run.data.metrics["val_variance_ratio"] < 0.1
    assert "alarm.train_val_gap" not in run.data.tags


def test_the_ratio_of_variances_by_hand(data):
    validate = validator(data, BankIndex(data.bank))
    assert validate(Constant())["variance_ratio"] == pytest.approx(0, abs=1e-6)
    targets = torch.from_numpy(data.bank[data.examples("val").target])
    inputs = torch.cat([b.vectors[b.mask] for b in batches(data, "val", 256, bank=bank_of(data))])

    class Copy:
        def predict_all(self, seq_vectors, tmd=None):
            return seq_vectors

    ratio = float(inputs.var(0, correction=0).sum() / targets.var(0, correction=0).sum())
    assert validate(Copy())["variance_ratio"] == pytest.approx(ratio, rel=1e-4)


def bank_of(data):
    return torch.from_numpy(data.bank)
