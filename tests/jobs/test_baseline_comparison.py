"""The baselines table: its intervals, its verdicts, and the command that makes it."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import click
import mlflow
import numpy as np
import pytest
import torch
import yaml
from command import run
from data_maker import make_dataset
from evaluated import evaluate_baselines

from ocp_mamba import stats
from ocp_mamba.baselines.checkpoint import load_predictor
from ocp_mamba.cli import options
from ocp_mamba.cli import train as train_command
from ocp_mamba.cli.variants import quality as command
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.jobs import train_once
from ocp_mamba.reports.baseline_table import Quality, Row, to_dict, to_markdown

ROOT = Path(__file__).resolve().parents[2]
TINY = ("--model-size", "tiny", "--n-layers", "3", "--batch-size", "16", "--max-epochs", "1",
        "--quiet")  # fmt: skip
CHEAP = ("persistence", "context_mean", "global_mean", "ridge", "nearest_neighbour")
TRAINED = ("OCPMambaLVM", "hedged", "gru", "transformer")


def test_one_seed_and_equal_seeds_have_the_interval_over_families_alone():
    rng = np.random.default_rng(0)
    values, groups = rng.random(300), rng.integers(0, 40, 300)
    alone = stats.bootstrap_mean(values, groups)
    assert stats.mean_over_seeds(values[None], groups) == alone
    thrice = stats.mean_over_seeds(np.stack([values] * 3), groups)
    assert thrice.n == 300
    for end in ("value", "low", "high"):
        assert getattr(thrice, end) == pytest.approx(getattr(alone, end), abs=1e-9)


def test_the_interval_covers_families_and_seeds_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(60), 4)
    covered, narrow, trials = 0, 0, 80
    for _ in range(trials):
        families = 0.5 * rng.normal(size=60)[groups]
        values = families + 0.1 * rng.normal(size=(3, 1)) + 0.1 * rng.normal(size=(3, 240))
        found = stats.mean_over_seeds(values, groups)
        alone = stats.bootstrap_mean(values[0], groups)
        covered += found.low <= 0 <= found.high
        narrow += alone.low <= 0 <= alone.high
    assert covered / trials >= 0.92
    assert narrow < covered


def test_an_interval_stays_within_what_examples_have():
    values = np.zeros((2, 50))
    values[0, :30] = 1
    found = stats.mean_over_seeds(values, np.arange(50))
    assert (found.low, found.value, found.high) == (0.0, 0.3, 1.0)
    assert stats.mean_over_seeds(np.zeros((3, 0)), np.zeros(0)).n == 0


@pytest.fixture(scope="module")
def evaluated():
    return evaluate_baselines(make_dataset(n_chains=150, n_concepts=60, seed=3))


def shifted(evaluated, by):
    cosines = evaluated.per_example["next_vec_cosine"] + by
    return replace(evaluated, per_example=evaluated.per_example | {"next_vec_cosine": cosines})


def test_a_verdict_says_whom_the_model_beats_ties_with_and_loses_to(evaluated):
    ridge = evaluated["ridge"]
    rng = np.random.default_rng(0)
    noise = rng.normal(size=len(ridge.chains)) * 0.2
    model = Row("ours", [shifted(ridge, 0.01 * s) for s in (-1, 0, 1)], 10, 1.0)
    below = Row("below", [shifted(ridge, -0.5)])
    level = Row("level", [shifted(ridge, noise - noise.mean() + 0.01 * s) for s in (-1, 0, 1)])
    above = Row("above", [shifted(ridge, 0.5)])
    beats = Quality(model, [below], (0, 1, 2), {})
    assert re.fullmatch(
        r"beats every row; the closest is below, \+0\.5000 \[\+0\.4\d+, \+0\.5\d+\]",
        beats.verdict("cosine"),
    )
    mixed = Quality(model, [below, level, above], (0, 1, 2), {})
    said = mixed.verdict("cosine")
    assert said.startswith("does not beat every row: loses to above (-0.5000 [")
    assert "; ties with level (" in said
    assert said.endswith("; beats below")
    assert "ties with below (+0.0000 [+0.0000, +0.0000])" in beats.verdict("P@1")
    gap = mixed.difference(level, "cosine")
    assert gap.value == pytest.approx(0, abs=1e-9), "paired by seed: the seeds' shifts cancel"
    assert mixed.figure(model, "cosine").high > mixed.figure(below, "cosine").high + 0.5


def test_rows_that_were_not_evaluated_alike_have_no_table(evaluated):
    model, other = Row("ours", [evaluated["ridge"]] * 2), evaluated["persistence"]
    with pytest.raises(ValueError, match="differ in split: val and test"):
        Quality(model, [Row("p", [replace(other, split="test")])], (0, 1), {})
    with pytest.raises(ValueError, match="p has 3 seeds"):
        Quality(model, [Row("p", [other] * 3)], (0, 1), {})


def test_an_empty_stratum_is_not_run(evaluated):
    none = np.zeros(len(evaluated["ridge"].chains), bool)
    ridge, mean = (
        replace(evaluated[n], strata=evaluated[n].strata | {"unseen": none})
        for n in ("ridge", "global_mean")
    )
    table = Quality(Row("ours", [ridge]), [Row("mean", [mean])], (7,), {})
    assert table.verdict("P@1, unseen") == "not run: no such sequences"
    assert "not run (n = 0)" in to_markdown(table)
    assert "one seed of training, 7" in to_markdown(table)
    assert to_dict(table)["rows"][1]["each_seed"]["P@1, unseen"] == []


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    make_dataset(n_chains=120, n_concepts=60, seed=4).save(path)
    return path


def tracked():
    found = mlflow.search_runs(experiment_names=["ocp_mamba"], output_format="list")
    return {r.info.run_name: r for r in found}


@pytest.mark.slow
def test_one_command_makes_the_table_and_goes_on_where_it_was_cut_off(file, store, tmp_path):
    words = ("quality", "--data", file, *TINY)
    said = run(*words, "--seeds", "1", "--only", "train")
    models, folder = tmp_path / "outputs/trained", tmp_path / "outputs/quality"
    assert f"4 trained models are in {models}" in said
    before = {p.name: p.stat().st_mtime_ns for p in models.iterdir()}
    assert len(before) == 4
    assert mlflow.search_experiments(filter_string="name = 'ocp_mamba'") == [], "nothing tracked"
    said = run(*words, "--seeds", "0,1", "--only", "table", code=2)
    absent = "; ".join(f"no {name}, seed 0" for name in TRAINED)
    assert f"outputs/trained has {absent} of these settings" in said

    said = run(*words, "--seeds", "0,1", "--split", "test")
    assert said.count(": trained before, ") == 4
    assert all((models / name).stat().st_mtime_ns == then for name, then in before.items())
    written = (folder / "quality.md").read_text().strip()
    assert written in said
    table = json.loads((folder / "quality.json").read_text())
    assert table["split"] == "test"
    assert table["seeds"] == [0, 1]
    assert [row["predictor"] for row in table["rows"]] == [
        *CHEAP, "hedged", "gru", "transformer", "OCPMambaLVM",
    ]  # fmt: skip
    assert all(
        f"- {column}: {verdict}." in written for column, verdict in table["verdicts"].items()
    )

    runs = tracked()
    top = runs["quality test"]
    assert top.info.status == "FINISHED"
    assert top.data.tags["test_split_evaluated"] == "true"
    assert top.data.tags["verdict.next_vec_cosine"] == table["verdicts"]["cosine"]
    assert top.data.params["train.seed"] == "0,1"
    children = {
        n for n, r in runs.items() if r.data.tags.get("mlflow.parentRunId") == top.info.run_id
    }
    assert children == {*CHEAP, *(f"{kind} seed {seed}" for kind in TRAINED for seed in (0, 1))}
    dataset = Dataset.load(file)
    (path,) = models.glob("gru-seed1-*.pt")
    again = evaluate(load_predictor(path).model, dataset, "test", name="gru")
    child = runs["gru seed 1"].data
    assert child.metrics["next_vec_cosine"] == pytest.approx(again.figures["next_vec_cosine"].value)
    assert child.metrics["val_next_vec_cosine"] > -1, "its epochs too"
    (row,) = [row for row in table["rows"] if row["predictor"] == "gru"]
    assert row["each_seed"]["cosine"][1] == pytest.approx(
        child.metrics["next_vec_cosine"], abs=1e-6
    )
    assert row["parameters"] == int(child.params["ran.parameters"])

    run(*words, "--seeds", "0,1", "--split", "test", "--only", "table")
    assert (folder / "quality.md").read_text().strip() == written, "the same models, the same table"


def test_other_settings_train_anew_and_val_is_what_is_evaluated_unasked(file, store, tmp_path):
    words = ("quality", "--data", file, *TINY, "--seeds", "3", "--output", "q")
    said = run(*words, "--n-layers", "1")
    assert "hedged not run:" in said, "three stacks need three layers"
    assert "one seed of training, 3 [95% interval over families;" in said
    (top,) = [r for n, r in tracked().items() if n == "quality val"]
    assert top.data.tags["test_split_evaluated"] == "false"
    words = (*words, "--n-layers", "1", "--only", "table")
    run(*words)
    said = run(*words, "--max-epochs", "2", code=2)
    assert "has no OCPMambaLVM, seed 3" in said
    threads = torch.get_num_threads()
    run(*words, "--threads", threads)


def test_a_failure_ends_the_run_as_failed_and_keeps_what_was_trained(file, store, monkeypatch):
    from ocp_mamba.training import trainer

    fit, done = trainer.fit, []

    def breaks(*args, **kwargs):
        if len(done) == 2:
            raise OSError("no space left")
        done.append(1)
        return fit(*args, **kwargs)

    monkeypatch.setattr(train_once, "fit", breaks)
    said = run("quality", "--data", file, *TINY, "--seeds", "0", code=2)
    assert "no space left" in said
    assert tracked()["quality val"].info.status == "FAILED"
    monkeypatch.setattr(train_once, "fit", fit)
    assert run("quality", "--data", file, *TINY, "--seeds", "0").count("trained before") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "three"], "'three' found, whole numbers as in 0,1,2 wanted"),
        (["--seeds", "1,1"], "names a seed twice"),
        (["--seeds", ""], "whole numbers as in 0,1,2 wanted"),
        (["--split", "train"], "train"),
    ],
)
def test_bad_words_are_named(words, message, file, store):
    assert message in run("quality", "--data", file, *words, code=2)


def test_a_split_without_sequences_is_refused_before_anything_is_trained(store, tmp_path):
    path = tmp_path / "no_test.npz"
    made = make_dataset(n_chains=30)
    make_dataset(n_chains=30, split=np.minimum(made.split, 1)).save(path)
    said = run("quality", "--data", path, "--split", "test", code=2)
    assert "the test split has no OCP sequences" in said


def test_the_default_settings_are_those_of_make_run():
    main = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]["main"]
    defaults = {name: str(p["default"]) for name, p in main["parameters"].items()}
    words = main["command"].format(**defaults).split()
    made = train_command.train.make_context("train", words[words.index("train") + 1 :])
    ours = command.make_context("quality", ["--data", "x.npz"])
    (model, train), (our_model, our_train) = (
        options.merged_settings(context.params) for context in (made, ours)
    )
    assert isinstance(made, click.Context)
    assert our_model == model
    assert our_train == replace(train, seed=our_train.seed)


def test_the_table_is_pasted_between_its_markers(evaluated):
    paste = runpy.run_path(str(ROOT / "scripts" / "paste_table.py"))
    begin, end = paste["markers"]("quality")
    table = to_markdown(
        Quality(Row("ours", [evaluated["ridge"]]), [Row("m", [evaluated["ridge"]])], (0,), {})
    )
    readme = f"a\n{begin}\nold\n{end}\nz\n"
    assert paste["pasted"]("quality", readme, table + "\n") == (f"a\n{begin}\n{table}\n{end}\nz\n")
    with pytest.raises(SystemExit, match="each once"):
        paste["pasted"]("quality", "a readme", table)
    with pytest.raises(SystemExit, match="is not the quality"):
        paste["pasted"]("quality", readme, "| run | evaluated |")
    assert (ROOT / "docs/results.md").read_text().count(begin) == 1
