"""`ocp-mamba` on a folder that exceeds the limits of what is evaluated whole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import mlflow
import pytest
from command import run
from data_maker import make_dataset
from mlflow.entities import Run

from ocp_mamba.data.analysis.sample import EvalLimits, SampledDataset, evaluation_part
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.data.load import load_dataset
from ocp_mamba.data.shards.convert import shard

LIMITS = ("--eval-sequences", 60, "--eval-train", 100, "--eval-pool", 60)
SIZE = ("--n-layers", 1, "--members", 1, "--batch-size", 64, "--max-epochs", 1, "--quiet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data")
    make_dataset(400, 200, 3).save(path / "large.npz")
    shard(path / "large.npz", path / "large")
    return path / "large"


@pytest.fixture(scope="module")
def part(folder: Path) -> SampledDataset:
    found = evaluation_part(load_dataset(folder), EvalLimits(60, 100, 60))
    assert isinstance(found, SampledDataset)
    return found


def runs(filter_string: str = "") -> list[Run]:
    found: list[Run] = mlflow.search_runs(
        experiment_names=["ocp_mamba"],
        filter_string=filter_string,
        order_by=["start_time DESC"],
        output_format="list",
    )
    return found


def evaluation(run_id: str) -> dict[str, object]:
    path = mlflow.artifacts.download_artifacts(
        run_id=run_id, artifact_path="reports/evaluation.json"
    )
    found: dict[str, object] = json.loads(Path(path).read_text())
    return found


@pytest.mark.slow
def test_the_whole_command_evaluates_on_the_sample_and_says_so(folder, part, store, tmp_path):
    said = run("train", "--data", folder, *LIMITS, *SIZE, "--output", "out/m.pt")
    n, of = part.sample.sequences["val"]
    assert n < of
    assert f"Too large to be evaluated whole; evaluated on {part.sample}" in said
    assert f"Evaluating the baselines on {n} validation sequences" in said
    assert said.count(f"evaluated on {part.sample}") == 3, "as it starts and under both tables"
    assert f"pool {part.n_concepts} concepts" in said
    trained = next(r for r in runs() if "mlflow.parentRunId" not in r.data.tags)
    baselines = runs("tags.kind = 'baseline'")
    assert len(baselines) == 5
    for tracked in (trained, *baselines):
        tags, figures = tracked.data.tags, tracked.data.metrics
        assert tags["sample.fingerprint"] == part.fingerprint
        assert tags["sample.val"] == f"{n} of {of} sequences"
        assert tags["sample.pool"] == f"{part.n_concepts} of 200 concepts"
        assert re.fullmatch(r"\d+ of [\d,]+ sequences", tags["sample.train"])
        assert figures["retrieval_pool_size"] == part.n_concepts
    assert trained.data.tags["dataset.fingerprint"] == part.sample.of
    assert trained.data.params["eval.sequences"] == "60"
    inputs = {i.dataset.name: i.dataset for i in trained.inputs.dataset_inputs}
    assert set(inputs) == {"large-train", "large-val-sample"}
    assert inputs["large-train"].digest == part.sample.of[:32]
    assert inputs["large-val-sample"].digest == part.fingerprint[:32]
    profile = json.loads(inputs["large-val-sample"].profile)
    assert (profile["examples"], profile["concepts"]) == (n, part.n_concepts)
    assert profile["sample"]["sequences"]["val"] == [n, of]
    page = (tmp_path / "out" / trained.info.run_id / "report.html").read_text()
    assert str(part.sample) in page
    assert f"over a pool of {part.n_concepts} of the bank" in page
    leaks = (tmp_path / "out" / trained.info.run_id / "leak_report.md").read_text()
    assert leaks.startswith(f"Of {part.sample}; looked up in all chains.")

    # The same flags give the same sample, and the best epoch its figures again.
    run("evaluate", "--data", folder, "--model", "out/m.pt", *LIMITS)
    again = runs("tags.kind = 'evaluation'")[0]
    first, second = evaluation(trained.info.run_id), evaluation(again.info.run_id)
    assert second["sample"] == first["sample"]
    assert second["figures"] == first["figures"]
    ranked = run("compare", trained.info.run_id, again.info.run_id)
    assert f"Evaluated on {part.sample}" in ranked.replace("\n", " ")

    # Other flags give another one, and the two are not ranked.
    run("evaluate", "--data", folder, "--model", "out/m.pt", *LIMITS, "--eval-seed", 1)
    other = runs("tags.kind = 'evaluation'")[0]
    refused = run("compare", trained.info.run_id, other.info.run_id, code=2)
    assert "differs from" in refused
    assert "in sample evaluated: " in refused
    run("evaluate", "--data", folder, "--model", "out/m.pt")
    whole = runs("tags.kind = 'evaluation'")[0]
    assert "sample.val" not in whole.data.tags
    assert "sample evaluated: whole, not " in run(
        "compare", trained.info.run_id, whole.info.run_id, code=2
    )


@pytest.mark.slow
def test_trained_baselines_learn_the_whole_and_are_evaluated_on_the_sample(folder, part, store):
    flags = ("--baselines", "full", "--output", "out/m.pt")
    said = run("train", "--data", folder, *LIMITS, *SIZE, *flags)
    assert "Training the gru baseline" in said
    full = [r for r in runs("tags.kind = 'baseline'") if r.data.params.get("epochs")]
    assert len(full) == 2
    for tracked in full:
        assert tracked.data.tags["sample.fingerprint"] == part.fingerprint
        assert tracked.data.metrics["retrieval_pool_size"] == part.n_concepts


def test_the_check_of_a_large_dataset_is_of_a_sample(folder, part, store):
    said = run("data", "check", folder, *LIMITS)
    assert f"Of {part.sample}; looked up in all chains.\n" in said
    checked = runs("tags.kind = 'data check'")[0]
    assert checked.data.tags["sample.fingerprint"] == part.fingerprint
    whole = run("data", "check", folder, "--no-track")
    assert "sample" not in whole


def test_the_limits_stand_in_the_help():
    for command in (("train",), ("evaluate",), ("data", "check")):
        said = " ".join(run(*command, "--help").split())
        for words in (
            "--eval-sequences N",
            "[default: 10000;",
            "--eval-pool M",
            "40000",
            "100000",
        ):
            assert words in said, (command, words)


def test_the_shipped_dataset_is_evaluated_whole():
    data = Dataset.load(Path(__file__).resolve().parents[2] / "ocp_training_9k.npz")
    assert evaluation_part(data, EvalLimits()) is data
