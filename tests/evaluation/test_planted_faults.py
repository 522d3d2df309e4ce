"""Each fault that ruins a run in silence is caught by name, and a clean run raises nothing.

The data: a concept is a topic and a phase of a circle of five; a chain walks the circle of one
topic, one way or the other. The last concept does not tell which way, two do: a model can learn
what no cheap baseline can. Some topics are in no train chain.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from checkpoint_files import rewrite
from data_maker import fields_of, make_dataset
from encoder_maker import CountingEncoder

from ocp_mamba.baselines.checkpoint import save_baseline
from ocp_mamba.baselines.neural import gru_of_size
from ocp_mamba.baselines.simple import Persistence, cheap_baselines
from ocp_mamba.config import D_VECTOR, ModelConfig, TrainConfig
from ocp_mamba.data.analysis.leakage import check
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import CheckpointError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.echo_loop import EncoderMismatchError
from ocp_mamba.evaluation.evaluate import evaluate, validator
from ocp_mamba.jobs.train import _same_predictions
from ocp_mamba.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.serving.pyfunc import save_pyfunc
from ocp_mamba.training.trainer import fit

TOPICS, PHASES, LENGTH, UNSEEN_TOPICS = 60, 5, 5, 10
MODEL = ModelConfig(d_model=64, n_layers=2, headdim=16)
TRAIN = TrainConfig(batch_size=32, max_epochs=8, lr=5e-3, precision="float32")


def walking_circles() -> Dataset:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((D_VECTOR, 10)))[0].T
    topics = rng.standard_normal((TOPICS, 6))
    topics /= np.linalg.norm(topics, axis=1, keepdims=True)
    angle = 2 * np.pi * np.arange(PHASES) / PHASES
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    bank = 0.6 * (topics @ basis[:6])[:, None] + (circle @ basis[6:8])[None]
    bank = bank.reshape(-1, D_VECTOR)
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    starts = [(t, p, way) for t in range(TOPICS) for p in range(PHASES) for way in (1, -1)]
    chains = [[t * PHASES + (p + way * k) % PHASES for k in range(LENGTH)] for t, p, way in starts]
    split = rng.choice(3, len(starts), p=[0.7, 0.15, 0.15])
    held_out = np.array([t < UNSEEN_TOPICS for t, _, _ in starts])
    split[held_out] = rng.integers(1, 3, held_out.sum())
    return make_dataset(
        n_chains=len(starts),
        n_concepts=len(bank),
        tmd=False,
        bank=bank.astype(np.float32),
        chain_values=np.array(chains, np.int32).ravel(),
        chain_offsets=np.arange(len(starts) + 1, dtype=np.int64) * LENGTH,
        split=split.astype(np.uint8),
    )


@pytest.fixture(scope="module")
def data():
    return walking_circles()


@pytest.fixture(scope="module")
def baselines(data):
    return {n: evaluate(p, data, "val", name=n) for n, p in cheap_baselines(data).items()}


def train(dataset, validate_on, path=None):
    torch.manual_seed(0)
    model = OCPMambaLVM(MODEL)
    validate = validator(validate_on, BankIndex(validate_on.bank))
    fitted = fit(model, dataset, TRAIN, validate=validate, output=path, progress=False)
    return model.eval(), fitted


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("clean") / "model.pt"
    model, fitted = train(data, data, path)
    return SimpleNamespace(model=model, fitted=fitted, path=path)


def verdicts(predictor, data, baselines, **known):
    evaluated = evaluate(predictor, data, "val", name="it")
    return gates.evaluate_gates(evaluated, baselines, **known)


def test_a_clean_run_raises_nothing(data, baselines, trained):
    leaks = check(data)
    assert leaks.warnings == []
    assert trained.fitted.alarms == ()
    found = verdicts(
        trained.model,
        data,
        baselines,
        trends=[r.improvement_trend for r in trained.fitted.history],
        train_minutes=sum(r.seconds for r in trained.fitted.history) / 60,
        inference_ready=_same_predictions(trained.model, load_checkpoint(trained.path), data),
        leaks=leaks.leaks,
        same_encoder=gates.same_encoder(
            load_checkpoint(trained.path).encoder, data.meta["encoder"]
        ),
    )
    assert set(found.values()) == {gates.PASS}, found


def failures(predictor, data, baselines, **known):
    return gates.failed(verdicts(predictor, data, baselines, **known))


def with_chains(data, chains, **replaced):
    """The same dataset with other chains, in the same splits."""
    fields = fields_of(data) | {
        "chain_values": np.concatenate(chains).astype(np.int32),
        "chain_offsets": np.concatenate([[0], np.cumsum([len(c) for c in chains])]),
    }
    return Dataset(**fields | replaced)


def test_a_bank_of_another_encoder_fails_its_gate_and_says_so_in_the_figures(
    data, baselines, trained
):
    """The same concepts in another space, as other weights would have put them."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((D_VECTOR, D_VECTOR)))[0]
    other = replace(
        data,
        bank=(data.bank @ turn).astype(np.float32),
        meta=data.meta | {"encoder": {"name": "other", "weight_hash": "9" * 64}},
    )
    same = gates.same_encoder(load_checkpoint(trained.path).encoder, other.meta["encoder"])
    theirs = {n: evaluate(p, other, "val", name=n) for n, p in cheap_baselines(other).items()}
    found = failures(trained.model, other, theirs, same_encoder=same)
    assert {"no_encoder_mismatch", "next_vec_cosine", "beats_baselines_p1"} <= set(found)


def test_a_bank_that_is_not_of_the_encoder_it_names_ends_the_evaluation(data, trained):
    with pytest.raises(EncoderMismatchError, match="encoder mismatch: 64 bank texts"):
        evaluate(trained.model, data, "val", name="it", encoder=CountingEncoder())


def test_a_leaked_split_fails_no_leak_and_is_warned_of(data, baselines, trained):
    chains = [data.chain(i) for i in range(data.n_chains)]
    for into, source in zip(data.chains_in("val")[:20], data.chains_in("train"), strict=False):
        chains[into] = chains[source]
    leaks = check(with_chains(data, chains))
    assert any("60 examples of val" in w and "also are in train" in w for w in leaks.warnings)
    found = failures(trained.model, data, baselines, leaks=leaks.leaks)
    assert found == ["no_leak"]


def test_a_collapsed_model_fails_not_collapsed(data, baselines, trained):
    mean = F.normalize(torch.from_numpy(data.bank[data.examples("train").target].mean(0)), dim=0)
    collapsed = SimpleNamespace(
        predict_all=lambda x, tmd=None: F.normalize(
            0.2 * trained.model.predict_all(x) + mean, dim=-1
        )
    )
    assert "not_collapsed" in failures(collapsed, data, baselines)


def test_a_copied_input_beats_nobody_and_its_margin_says_why(data, baselines, trained):
    others = {name: b for name, b in baselines.items() if name != "persistence"}
    found = failures(Persistence(), data, others)
    assert {"beats_baselines_cosine", "beats_baselines_p1", "unseen_beats_ridge"} <= set(found)
    figures = evaluate(Persistence(), data, "val", name="it").figures
    copied = figures["next_vec_cosine"].value - 1
    assert figures["margin"].value == pytest.approx(copied, abs=1e-5)
    honest = evaluate(trained.model, data, "val", name="it").figures["margin"]
    assert figures["margin"].high < 0 < honest.low


def test_shuffled_targets_are_warned_of_and_what_learns_from_them_fails(data, baselines):
    rng = np.random.default_rng(2)
    chains = [data.chain(i).copy() for i in range(data.n_chains)]
    for split in ("train", "val", "test"):
        ids = data.chains_in(split)
        for k in range(2, LENGTH):
            values = rng.permutation([chains[i][k] for i in ids])
            for i, value in zip(ids, values, strict=True):
                chains[i][k] = value
    shuffled = with_chains(data, chains)
    warnings = [w for w in check(shuffled).warnings if "the targets look shuffled" in w]
    assert len(warnings) == 3
    model, fitted = train(shuffled, shuffled)
    trends = [r.improvement_trend for r in fitted.history]
    found = failures(model, data, baselines, trends=trends)
    assert {"next_vec_cosine", "beats_baselines_cosine", "beats_baselines_p1"} <= set(found)


def test_a_file_with_other_weights_is_not_ready_for_inference(data, baselines, trained, tmp_path):
    torch.manual_seed(1)
    other = OCPMambaLVM(MODEL).eval()
    save_checkpoint(
        tmp_path / "other.pt",
        other,
        dataset_fingerprint=data.fingerprint,
        encoder=data.meta["encoder"],
    )
    ready = _same_predictions(trained.model, load_checkpoint(tmp_path / "other.pt"), data)
    assert failures(trained.model, data, baselines, inference_ready=ready) == ["inference_ready"]
    loaded = load_checkpoint(tmp_path / "other.pt").build_model()
    found = failures(loaded, data, baselines)
    assert {"next_vec_cosine", "beats_baselines_cosine", "beats_baselines_p1"} <= set(found)


def test_a_baseline_in_the_models_place_is_not_promoted(data, tmp_path):
    """A file of another class is refused by name where it is loaded, served or registered."""
    gru = gru_of_size(MODEL, 50_000)
    path = tmp_path / "model.pt"
    save_baseline(path, gru, dataset_fingerprint=data.fingerprint, encoder=data.meta["encoder"])
    both = "holds a baseline of kind 'gru', OCPMambaLVM or"
    for promote in (load_checkpoint, load_model, lambda p: save_pyfunc(tmp_path / "served", p)):
        with pytest.raises(CheckpointError, match=both):
            promote(path)
    rewrite(path, kind="OCPMambaLVM")
    with pytest.raises(CheckpointError, match="keys \\['model_config'\\] are missing"):
        load_model(path)
    rewrite(path, "settings", model_config=asdict(MODEL))
    with pytest.raises(CheckpointError, match="key 'state_dict': the weights do not fit the conf"):
        load_model(path)


def test_targets_that_lag_by_one_are_warned_of(data):
    """Windows whose target is the context's last concept again."""
    chains = [np.append(data.chain(i)[:3], data.chain(i)[2]) for i in range(data.n_chains)]
    lagging = with_chains(data, chains, chain_first=np.full(len(chains), 3, np.uint8))
    warnings = [w for w in check(lagging).warnings if "the targets look off by one" in w]
    assert len(warnings) == 3


def test_targets_that_lead_by_one_teach_what_fails(data, baselines):
    leading = with_chains(data, [data.chain(i)[[0, 1, 3]] for i in range(data.n_chains)])
    model, _ = train(leading, leading)
    learnt = evaluate(model, leading, "val", name="it").figures["faiss_retrieval_p1"]
    assert learnt.value > 0.5
    found = failures(model, data, baselines)
    assert {"beats_baselines_cosine", "beats_baselines_p1", "unseen_beats_ridge"} <= set(found)
