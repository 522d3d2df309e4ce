"""``ocp-mamba train --baselines full``, tracked for real in a sqlite store."""

import json

import mlflow
import pytest
from click.testing import CliRunner
from command import run
from data_maker import make_dataset

from ocp_mamba.baselines.neural import TRAINED_BASELINES
from ocp_mamba.cli.main import main

TRAIN = ["train", "--model-size", "tiny", "--n-layers", "1", "--batch-size", "16", "--max-epochs",
         "2", "--quiet"]  # fmt: skip
GATES = ("gate.beats_trained_baselines_cosine", "gate.beats_trained_baselines_p1")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    make_dataset(n_chains=120, n_concepts=60, seed=4).save(path)
    return path


def train(file, *words):
    result = CliRunner().invoke(main, [*TRAIN, "--data", str(file), *words])
    if result.exception is not None:
        raise result.exception
    runs = mlflow.search_runs(experiment_names=["ocp_mamba"], output_format="list")
    (top,) = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    return result.output, top, {r.info.run_name: r for r in runs if r is not top}


def test_full_trains_evaluates_and_tracks_each_beside_the_model(file, store, tmp_path):
    said, top, children = train(file, "--baselines", "full", "--seed", "3")
    size = int(top.data.params["ran.parameters"])
    for name in TRAINED_BASELINES:
        child = children[f"baseline {name}"].data
        assert child.tags["kind"] == "baseline"
        assert int(child.params["ran.parameters"]) == pytest.approx(size, rel=0.05)
        assert child.params["epochs"] == "2"
        assert child.metrics["train_time_minutes"] > 0
        cosine = child.metrics["next_vec_cosine"]
        assert f"next_vec_cosine {cosine:.3f} [" in top.data.tags[f"baseline.{name}"]
        assert f"Training the {name} baseline" in said
        assert any(line.startswith(name) for line in said.splitlines()), "a row of the last table"
        client, keys = mlflow.MlflowClient(), {"cosine": "next_vec_cosine", "p1": "retrieval_p1"}
        for short, key in keys.items():
            line = client.get_metric_history(top.info.run_id, f"2_baselines/{short}_{name}")
            own = client.get_metric_history(children[f"baseline {name}"].info.run_id, f"val_{key}")
            assert [(m.step, m.value) for m in line] == [(m.step, m.value) for m in own]
            assert [m.step for m in line] == [1, 2], "a line, not a dot"
    assert top.data.params["ran.baselines"] == "full"
    assert all(top.data.tags[gate] in ("pass", "fail") for gate in GATES)
    artifact = mlflow.artifacts.load_text(f"{top.info.artifact_uri}/plots/cosine.json")
    assert set(TRAINED_BASELINES) <= set(json.loads(artifact)["baselines"])


@pytest.mark.slow
def test_a_trained_baseline_is_evaluated_from_its_file_and_from_its_child_run(
    file, store, tmp_path
):
    _, _, children = train(file, "--baselines", "full", "--output", "out/m.pt")
    for name in TRAINED_BASELINES:
        child = children[f"baseline {name}"]
        history = mlflow.MlflowClient().get_metric_history(child.info.run_id, "val_next_vec_cosine")
        assert [m.step for m in history] == [1, 2]
        for model in (tmp_path / f"out/m.{name}.pt", f"runs:/{child.info.run_id}/m.{name}.pt"):
            run("evaluate", "--model", model, "--data", file, "--against", "none")
            evaluated = mlflow.search_runs(
                experiment_names=["ocp_mamba"], output_format="list", max_results=1,
                filter_string="tags.kind = 'evaluation'", order_by=["start_time DESC"],
            )[0].data  # fmt: skip
            for metric in ("next_vec_cosine", "faiss_retrieval_p1", "unseen_next_vec_cosine"):
                assert evaluated.metrics[metric] == pytest.approx(child.data.metrics[metric]), (
                    metric
                )
            assert evaluated.metrics["inference_latency_ms"] > 0
            assert evaluated.tags["gate.no_encoder_mismatch"] == "pass"
    said = run("evaluate", "--model", "baseline:gru", "--data", file, code=2)
    assert "evaluated by the file" in said
    said = run("evaluate", "--model", f"runs:/{'0' * 32}/m.gru.pt", "--data", file, code=2)
    assert "no model to load" in said


def test_cheap_is_the_default_and_says_not_run(file, store, tmp_path):
    said, top, children = train(file)
    assert not any(name in " ".join(children) for name in TRAINED_BASELINES)
    assert [top.data.tags[gate] for gate in GATES] == ["not-run", "not-run"]
    assert "beats_trained_baselines_cosine" in said
