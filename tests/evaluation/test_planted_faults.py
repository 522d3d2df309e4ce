"""Each fault that ruins a run in silence is caught by name, and a clean run raises nothing.

The data: a concept is a topic and a phase of a circle of five; a chain walks the circle of one
topic, one way or the other. The last concept does not tell which way, two do: a model can learn
what no cheap baseline can. Some topics are in no train chain.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
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
from ocp_mamba.evaluation.exposure import exposure_of
from ocp_mamba.jobs.evaluate import EvaluationJob, evaluate_on
from ocp_mamba.jobs.open_model import declared, open_predictor
from ocp_mamba.jobs.train import _same_predictions
from ocp_mamba.model import checkpoint as files
from ocp_mamba.model.checkpoint import load_checkpoint, load_model
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
    files.save_checkpoint(
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


def relabelled(data, n=50):
    """A dataset whose val split is train chains of ``data``; the other chains train."""
    split = np.zeros(data.n_chains, np.uint8)
    split[data.chains_in("train")[:n]] = 1
    split[data.chains_in("test")] = 2
    return Dataset(**fields_of(data) | {"split": split})


def rebuilt(data, seed):
    """The same chains out of a bank in another order, with other spaces and case in its texts."""
    order = np.random.default_rng(seed).permutation(data.n_concepts)
    place = np.argsort(order)
    texts = np.array([f" {text.upper()} " for text in data.texts[order].tolist()])
    values = place[data.chain_values].astype(np.int32)
    return Dataset(
        **fields_of(data) | {"bank": data.bank[order], "texts": texts, "chain_values": values}
    )


def evaluated(model, dataset, tmp_path, said=None, **options):
    """What `ocp-mamba evaluate` finds, without a run."""
    job = EvaluationJob(str(model), Path("d.npz"), "val", tmp_path, track=False, **options)
    return evaluate_on(dataset, job, (said if said is not None else []).append)


def exposure(model, dataset):
    """How much of a dataset's val split a file's model learnt, and the strata."""
    return exposure_of(dataset, "val", open_predictor(str(model), dataset, {}).trained_on)


@pytest.fixture(scope="module")
def on_its_own_train(data, trained, tmp_path_factory):
    faulty = relabelled(data)
    assert not check(faulty, min_context=1).leaks, "the file alone shows nothing"
    return evaluated(trained.path, faulty, tmp_path_factory.mktemp("own"))


def test_a_model_evaluated_on_what_it_was_trained_on_fails_no_leak(on_its_own_train):
    found, n = on_its_own_train, on_its_own_train.evaluation.n_examples
    assert found.evaluation.figures["next_vec_cosine"].value > 0.9, "it looks good"
    assert "no_leak" in gates.failed(found.gates)
    assert found.gates["no_leak"].reason == (
        f"it learnt {n} of the {n} evaluated sequences, answer included"
    )
    page = found.page.read_text(encoding="utf-8")
    assert f"It learnt {n} of the {n} evaluated sequences, answers included" in page
    assert page.count('<div class="card good">') == 1, "only that it does not look ahead"


def test_strata_are_of_what_the_model_learnt(on_its_own_train, data, trained):
    """Not of the train split of the file that it is evaluated on, in each row of the table."""
    for result in (on_its_own_train.evaluation, *on_its_own_train.baselines.values()):
        assert result.strata["seen"].all()
        assert result.figures["unseen/faiss_retrieval_p1"].value is None
    assert on_its_own_train.gates["unseen_beats_ridge"] == gates.NOT_RUN
    test = data.chains_in("test")
    split = np.where(np.isin(np.arange(data.n_chains), test), 0, data.split)
    other_train = Dataset(**fields_of(data) | {"split": split.astype(np.uint8)})
    for name, mask in exposure(trained.path, data)[1].items():
        np.testing.assert_array_equal(exposure(trained.path, other_train)[1][name], mask)


def test_another_split_and_a_file_that_was_built_again_hide_nothing(data, trained):
    assert exposure(trained.path, data)[0].learnt == 0
    again = np.random.default_rng(5).permutation(data.split)
    other_seed = Dataset(**fields_of(data) | {"split": again})
    learnt = set(data.chains_in("train").tolist())
    for faulty in (other_seed, rebuilt(relabelled(data), 6)):
        assert not check(faulty, min_context=1).leaks, "the file alone shows nothing"
        chains = faulty.examples("val").chain
        found = exposure(trained.path, faulty)[0]
        assert found.learnt == sum(int(c) in learnt for c in chains) > 0


def test_a_model_that_does_not_say_what_it_learnt_gets_no_verdict_on_it(data, trained, tmp_path):
    content = torch.load(trained.path, weights_only=True)
    kind = content.pop("kind")
    del content["learnt"]
    older, said = tmp_path / "older.pt", []
    files.write_checkpoint(older, kind, content)
    found = evaluated(older, relabelled(data), tmp_path, said, against=False)
    assert found.gates["no_leak"] == found.gates["unseen_beats_ridge"] == gates.NOT_RUN
    why = "older.pt does not say what it learnt from"
    assert any(why in line for line in said)
    assert why in found.page.read_text(encoding="utf-8")
    assert found.evaluation.figures["unseen/faiss_retrieval_p1"].n == 0
    files.write_checkpoint(older, kind, content | {"learnt": {"form": "of tomorrow"}})
    words = open_predictor(str(older), data, {}).trained_on.words
    assert "have the form 'of tomorrow'" in words


def test_what_a_caller_says_of_a_model_can_fail_it_and_proves_nothing(data, trained):
    """Strata are made of it, so that a predictor of one's own has them."""
    said = declared(data, "d.npz")
    found = evaluate(trained.model, data, "val", name="own", trained_on=said)
    assert found.strata["seen"].any()
    verdict = gates.leak_gate(found, leaks=False)
    assert verdict == gates.NOT_RUN
    assert verdict.reason == "the train split of d.npz, as the caller says; nothing proves it"
    faulty, _ = exposure_of(relabelled(data), "val", said)
    assert gates.leak_gate(replace(found, exposure=faulty), leaks=False) == gates.FAIL


class LooksAhead:
    """Repeats its input, one position early: each answer stands right there."""

    def predict_all(self, seq_vectors, tmd=None):
        return torch.roll(seq_vectors, -1, dims=1)


def test_a_predictor_that_looks_ahead_fails_causal(data, baselines):
    found = evaluate(LooksAhead(), data, "val", name="it")
    verdict = gates.evaluate_gates(found, baselines)["causal"]
    assert verdict == gates.FAIL
    assert found.figures["next_vec_cosine"].value > 0.5, "it looks good"
    assert found.causality.n > 100
    for honest in (*baselines.values(), evaluate(Persistence(), data, "val", name="it")):
        assert gates.causal_gate(honest) == gates.PASS


def test_a_predictor_that_remembers_whole_chains_fails_causal_too(data, baselines):
    """It looks ahead where it can, and answers a context alone from what it saw before."""

    class Remembers(LooksAhead):
        def __init__(self):
            self.known = {}

        def predict_all(self, seq_vectors, tmd=None):
            for chain in seq_vectors:
                for t in range(len(chain) - 1):
                    self.known.setdefault(chain[t].numpy().tobytes(), chain[t + 1])
            out = super().predict_all(seq_vectors).clone()
            for row, chain in zip(out, seq_vectors, strict=True):
                row[-1] = self.known.get(chain[-1].numpy().tobytes(), chain[-1])
            return out

    found = evaluate(Remembers(), data, "val", name="it")
    assert gates.causal_gate(found) == gates.FAIL


def test_a_chain_that_ends_with_its_only_target_shows_nothing_to_look_at(data):
    windows = with_chains(data, [data.chain(i)[:3] for i in range(data.n_chains)])
    verdict = gates.causal_gate(evaluate(LooksAhead(), windows, "val", name="it"))
    assert verdict == gates.NOT_RUN
    assert "no chain goes on after a context" in verdict.reason
