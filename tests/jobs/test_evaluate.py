"""`ocp-mamba evaluate` as a person and as CI call it."""

import json
import re

import command
import mlflow
import numpy as np
import pytest
import torch
from data_maker import make_dataset
from encoder_maker import save_tiny_encoder

from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.embeddings.encoders import SentenceTransformerEncoder
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM

N = 60


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def file(tmp_path_factory, encoder):
    """Chains over a bank that the tiny encoder made."""
    texts = np.array([f"concept {chr(97 + i % 26)}{i}" for i in range(N)])
    live = SentenceTransformerEncoder(str(encoder))
    path = tmp_path_factory.mktemp("data") / "small.npz"
    made = make_dataset(
        n_chains=120, n_concepts=N, seed=4, texts=texts, bank=live.encode(list(texts))
    )
    made.meta["encoder"] = {"name": live.name, "weight_hash": live.weight_hash}
    made.save(path)
    return path


def run(*words, code=0):
    return command.run("evaluate", *words, code=code)


def last_run():
    return mlflow.search_runs(
        experiment_names=["ocp_mamba"], order_by=["start_time DESC"], output_format="list"
    )[0]


def test_a_failed_gate_ends_with_1_after_all_is_written(file, store, tmp_path):
    said = run("--model", "baseline:persistence", "--data", file, "--gate", "--output", "j", code=1)
    assert "Error: failed gates: " in said
    assert "beats_baselines_p1" in said.splitlines()[-1]
    verdicts = json.loads((tmp_path / "j/gates.json").read_text())
    failed = [name for name, verdict in verdicts.items() if verdict == "fail"]
    assert said.splitlines()[-1] == f"Error: failed gates: {', '.join(failed)}"
    assert verdicts["improvement_trend"] == "not-run"
    assert verdicts["no_encoder_mismatch"] == verdicts["no_leak"] == "pass"
    assert verdicts["unseen_beats_ridge"] == "fail"
    tracked = last_run()
    assert tracked.info.status == "FINISHED"
    tags = {k.removeprefix("gate."): v for k, v in tracked.data.tags.items() if "gate." in k}
    assert tags == verdicts
    names = {a.path for a in mlflow.MlflowClient().list_artifacts(tracked.info.run_id, "reports")}
    assert {"reports/evaluation.json", "reports/gates.json", "reports/report.html"} <= names
    assert 0 < float(tracked.data.tags["retrieval.top1_ceiling"]) <= 1
    described = tracked.data.tags["mlflow.note.content"]
    assert described.startswith("**Failed gates: ")
    assert all(gate in described for gate in verdicts)
    assert not any(name.startswith("interval.") for name in tracked.data.tags)
    row = next(line for line in said.splitlines() if line.startswith("beats_baselines_p1"))
    assert re.match(r"beats_baselines_p1 +fail +-0\.\d+ \[.*\] +interval > 0 +n = \d+; least", row)
    assert tracked.data.tags["metric.vec2text"] == "not-run"


def test_without_gate_the_same_evaluation_ends_with_0(file, store):
    said = run("--model", "baseline:persistence", "--data", file)
    for name in ("baseline:persistence", "ridge", "nearest_neighbour", "not_collapsed"):
        assert name in said, name
    assert "the untrained context mean has -" in said
    assert "Below 0 is no fault by itself" in said


def test_gates_that_compare_are_not_run_without_baselines(file, store, tmp_path):
    said = run("--model", "baseline:persistence", "--data", file, "--against", "none")
    assert "evaluating baseline:ridge" not in said
    verdicts = json.loads((tmp_path / "outputs/evaluation/gates.json").read_text())
    assert verdicts["beats_baselines_p1"] == verdicts["unseen_beats_ridge"] == "not-run"


def test_the_echo_is_encoded_by_the_encoder_given(file, encoder, store, tmp_path):
    run("--model", "baseline:ridge", "--data", file, "--against", "none", "--encoder", encoder)
    tracked = last_run()
    assert tracked.data.tags["echo_encoder"] == "tiny-encoder"
    written = json.loads((tmp_path / "outputs/evaluation/evaluation.json").read_text())
    assert written["parity"]["lowest"] > 0.999
    assert tracked.data.metrics["encoder_parity_lowest"] == pytest.approx(
        written["parity"]["lowest"]
    )
    run("--model", "baseline:ridge", "--data", file, "--against", "none")
    bank = last_run()
    assert bank.data.tags["echo_encoder"] == "bank"
    echo = "echo_loop_similarity"
    assert tracked.data.metrics[echo] == pytest.approx(bank.data.metrics[echo], abs=1e-3)


def test_an_encoder_that_did_not_make_the_bank_is_refused(file, store, tmp_path):
    other = tmp_path / "other.npz"
    make_dataset(n_chains=120, n_concepts=N, seed=4).save(other)
    folder = save_tiny_encoder(tmp_path / "other", seed=1)
    said = run("--model", "baseline:ridge", "--data", other, "--encoder", folder, code=2)
    assert "encoder mismatch: 60 bank texts encoded again by tiny-encoder" in said
    tracked = last_run()
    assert tracked.info.status == "FAILED"
    assert tracked.data.tags["gate.no_encoder_mismatch"] == "fail"
    assert "encoder mismatch: 60 bank texts" in tracked.data.tags["ended.reason"]
    assert f"mean {tracked.data.metrics['encoder_parity_mean']:.4f}, lowest" in said
    assert tracked.data.metrics["encoder_parity_lowest"] < 0.5
    assert "next_vec_cosine" not in tracked.data.metrics, "nothing was evaluated"
    said = run("--model", "baseline:ridge", "--data", file, "--encoder", tmp_path / "no", code=2)
    assert "cannot be loaded" in said


def test_weights_are_rounded_before_the_evaluation_and_logged(file, store, tmp_path):
    torch.manual_seed(0)
    model = OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16))
    save_checkpoint(
        tmp_path / "m.pt", model, dataset_fingerprint="", encoder=Dataset.load(file).meta["encoder"]
    )
    found = {}
    for weights in ("float32", "int8"):
        run("--model", "m.pt", "--data", file, "--against", "none", "--weights", weights)
        assert last_run().data.params["evaluated.weights"] == weights
        found[weights] = last_run().data.metrics["next_vec_cosine"]
    assert found["int8"] != found["float32"]
    assert found["int8"] == pytest.approx(found["float32"], abs=0.01)
    said = run(
        "--model", "baseline:ridge", "--data", file, "--weights", "bf16", code=2
    )  # fmt: skip
    assert "baseline:ridge has no weights to store as bf16" in said


def test_an_approximate_index_reports_its_recall(file, store):
    said = run("--model", "baseline:ridge", "--data", file, "--index", "hnsw")
    assert "faiss_recall_at_1" in said
    tracked = last_run()
    assert tracked.data.tags["retrieval.index"] == "hnsw"
    assert 0.5 < tracked.data.metrics["faiss_recall_at_1"] <= 1
