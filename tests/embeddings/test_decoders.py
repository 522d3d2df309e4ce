"""vec2text's adapter, against a stand-in with its interface: no weights of it are at hand."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from command import run
from data_maker import make_dataset
from encoder_maker import CountingEncoder

from ocp_mamba.baselines.simple import Ridge
from ocp_mamba.embeddings import decoders
from ocp_mamba.embeddings.decoders import Vec2TextDecoder
from ocp_mamba.errors import DecoderError
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.jobs import evaluate as evaluate_job

TEXTS = np.array([f"concept {i}" for i in range(80)])
GTR = "sentence-transformers/gtr-t5-base"


@pytest.fixture(scope="module")
def data():
    made = make_dataset(
        n_chains=100, n_concepts=80, texts=TEXTS, bank=CountingEncoder().encode(TEXTS)
    )
    made.meta["encoder"] = {"name": GTR, "weight_hash": "1" * 64}
    return made


@pytest.fixture
def vec2text(monkeypatch, data):
    """A module with vec2text 0.0.13's two functions, whose corrector knows the bank by heart."""
    asked = {}

    def load_pretrained_corrector(embedder):
        asked["embedder"] = embedder
        return "corrector"

    def invert_embeddings(embeddings, corrector, num_steps=None, sequence_beam_width=0):
        asked.update(corrector=corrector, steps=num_steps, shape=tuple(embeddings.shape))
        nearest = (embeddings @ torch.from_numpy(data.bank).T).argmax(dim=1)
        return [str(TEXTS[i]) for i in nearest]

    module = SimpleNamespace(
        load_pretrained_corrector=load_pretrained_corrector, invert_embeddings=invert_embeddings
    )
    monkeypatch.setitem(sys.modules, "vec2text", module)
    monkeypatch.setattr(decoders, "find_spec", lambda name: name)
    return asked


def test_a_decoder_closes_the_echo_loop_on_a_sample(data, vec2text):
    evaluated = evaluate(
        Ridge(data), data, "val", name="ridge", encoder=CountingEncoder(),
        decoder=Vec2TextDecoder(GTR),
    )  # fmt: skip
    n = min(100, evaluated.n_examples)
    assert vec2text == {
        "embedder": "gtr-base", "corrector": "corrector", "steps": 20, "shape": (n, 768),
    }  # fmt: skip
    for name, bank in {"echo_similarity": "echo_loop_similarity",
                       "echo_to_prediction": "echo_to_prediction"}.items():  # fmt: skip
        figure = evaluated.figures[f"vec2text_{name}"]
        assert figure.n == n
        if n == evaluated.n_examples:
            assert figure.value == pytest.approx(evaluated.figures[bank].value, abs=1e-5)
    assert evaluated.tags()["metric.vec2text"] == "ran"


def test_without_it_the_figure_is_not_run(data):
    evaluated = evaluate(Ridge(data), data, "val", name="ridge", encoder=CountingEncoder())
    assert "vec2text_echo_similarity" not in evaluated.figures
    assert evaluated.tags()["metric.vec2text"] == "not-run"


def test_what_is_absent_is_named(vec2text, monkeypatch):
    with pytest.raises(DecoderError, match="no corrector for vectors of a/b, only for gtr-t5-base"):
        Vec2TextDecoder("a/b")

    def offline(embedder):
        raise OSError("no route to the hub\nmore")

    monkeypatch.setattr(sys.modules["vec2text"], "load_pretrained_corrector", offline)
    with pytest.raises(DecoderError, match="gtr-base cannot be loaded: OSError: no route to the h"):
        Vec2TextDecoder(GTR)
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    with pytest.raises(DecoderError, match=r"not installed \(pip install 'ocp-mamba\[vec2text\]'"):
        Vec2TextDecoder(GTR)


def test_the_command_says_why_it_was_not_run(data, store, tmp_path, monkeypatch):
    data.save(tmp_path / "d.npz")
    monkeypatch.setattr(evaluate_job, "SentenceTransformerEncoder", lambda name: CountingEncoder())
    monkeypatch.setattr(decoders, "find_spec", lambda name: None)
    words = ("evaluate", "--model", "baseline:ridge", "--data", "d.npz", "--against", "none")
    said = run(*words, "--decoder", "vec2text", code=2)
    assert "--decoder vec2text makes texts that are in no bank" in said
    said = run(*words, "--decoder", "vec2text", "--encoder", "counting")
    assert "WARNING: vec2text not run: vec2text is not installed" in said
    run(*words)
    found = mlflow.search_runs(
        experiment_names=["ocp_mamba"], order_by=["start_time"], output_format="list"
    )
    reasons = [r.data.tags["vec2text.reason"].split(" (")[0] for r in found]
    assert reasons == ["vec2text is not installed", "not asked for"]
    assert [r.data.tags["metric.vec2text"] for r in found] == ["not-run", "not-run"]
