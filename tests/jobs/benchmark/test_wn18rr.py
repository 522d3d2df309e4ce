"""The whole benchmark on a small graph: its table, its runs, and that nothing is done twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from command import run
from graph_maker import WordTokens, write_graph

from ocp_mamba.cli.variants import ROWS as COMMAND_ROWS
from ocp_mamba.errors import CheckpointError
from ocp_mamba.jobs.benchmark import trained
from ocp_mamba.jobs.benchmark.wn18rr import BenchmarkJob, run_wn18rr
from ocp_mamba.link_prediction import rows
from ocp_mamba.link_prediction.rows import ROWS
from ocp_mamba.link_prediction.training import TrainSettings

TINY = {
    name: replace(
        ROWS[name],
        shape=shape,
        train=TrainSettings(epochs=2, batch=32, parents=9, others=40),
        rank=ROWS[name].rank and 8,
    )
    for name, shape in {
        "linear-softmax": {},
        "mamba-tokens": {"d_model": 32, "n_layers": 1},
        "mlp": {"hidden": 8},
    }.items()
}
MODELS = ("most-common-parent", "ridge", "linear-softmax", "mamba-tokens")


def job(folder: Path, **changes: object) -> BenchmarkJob:
    start = BenchmarkJob(
        folder=folder / "graph",
        output=folder / "out",
        cache=folder / "cache",
        encoder="words",
        models=MODELS,
        seeds=(0, 1),
        rows=TINY,
        progress=False,
    )
    return replace(start, **changes)  # type: ignore[arg-type]


def words(name: str) -> WordTokens:
    return WordTokens()


def test_a_benchmark_from_the_folder_to_the_table(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_graph(tmp_path / "graph")
    said: list[str] = []
    table = run_wn18rr(job(tmp_path), said.append, words)
    assert [row.name for row in table.ran] == list(MODELS)
    assert [len(row.ranks) for row in table.ran] == [1, 1, 2, 2]
    text = (tmp_path / "out" / "wn18rr_dev.md").read_text()
    assert text.strip() in said[-1]
    assert len([line for line in text.splitlines() if "| mlp" in line and "not-run" in line]) == 2
    assert "**mamba-tokens**" in text
    assert "means over their seeds, of 0 and 1;" in text
    assert "families" not in text, "queries are what is drawn"
    assert "SimKGC (published" not in text, "its figures are of test"
    numbers = json.loads((tmp_path / "out" / "wn18rr_dev.json").read_text())
    assert {r["row"]: r["state"] for r in numbers["rows"]}["mlp"] == "not-run"

    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert [r.data.tags["test_split_evaluated"] for r in parents] == ["false"]
    assert parents[0].info.status == "FINISHED"
    children = {r.info.run_name: r for r in runs if r is not parents[0]}
    assert set(children) == {
        "most-common-parent", "ridge", "linear-softmax seed 0", "linear-softmax seed 1",
        "mamba-tokens seed 0", "mamba-tokens seed 1",
    }  # fmt: skip
    child = children["mamba-tokens seed 1"]
    assert child.data.params["shape.d_model"] == "32"
    assert child.data.params["train.seed"] == "1"
    ours = next(row for row in table.ran if row.name == "mamba-tokens")
    found = (ours.ranks[1].masked <= 1).mean()
    assert child.data.metrics["masked.hits_at_1"] == pytest.approx(found)
    client = mlflow.MlflowClient()
    curve = client.get_metric_history(child.info.run_id, "val_mrr")
    assert [point.step for point in curve] == [1, 2]
    reports = {f.path for f in client.list_artifacts(parents[0].info.run_id, "reports")}
    assert reports == {"reports/wn18rr_dev.md", "reports/wn18rr_dev.json"}

    monkeypatch.setattr(trained, "train", None)  # whatever trains again fails
    tested = run_wn18rr(job(tmp_path, split="test"), said.append, words)
    assert any("TEST split" in line for line in said)
    assert [len(row.ranks) for row in tested.ran] == [1, 1, 2, 2]
    assert "SimKGC (published, not run here)" in (tmp_path / "out" / "wn18rr_test.md").read_text()
    latest = mlflow.search_runs(
        search_all_experiments=True,
        filter_string="tags.test_split_evaluated = 'true'",
        output_format="list",
    )
    assert len(latest) == 1

    file = next((tmp_path / "out" / "trained").glob("linear-softmax-seed0-*.pt"))
    file.write_bytes(next(file.parent.glob("mamba-tokens-seed0-*.pt")).read_bytes())
    with pytest.raises(CheckpointError, match="is not what this training writes; remove it"):
        run_wn18rr(job(tmp_path), said.append, words)


def test_the_name_of_a_file_has_all_that_the_training_depends_on(tmp_path: Path) -> None:
    row = TINY["linear-softmax"]
    assert row.settings() != replace(row, train=replace(row.train, lr=1e-5)).settings()
    assert row.settings() != TINY["mlp"].settings()
    assert len({json.dumps(r.settings(), sort_keys=True) for r in ROWS.values()}) == len(ROWS)


def test_the_command_knows_the_rows_and_refuses_others(tmp_path: Path) -> None:
    assert COMMAND_ROWS == rows.ALL_ROWS
    said = run("benchmark", "wn18rr", "--folder", tmp_path, "--models", "best", code=2)
    assert "'best' is unknown; choose of most-common-parent" in said
    said = run("benchmark", "wn18rr", "--folder", tmp_path / "none", code=2)
    assert "lacks entity2text.txt, train.tsv, dev.tsv, test.tsv" in said
