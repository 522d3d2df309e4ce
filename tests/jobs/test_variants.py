"""``ocp-mamba variants``: trained and evaluated for real on a tiny dataset, tracked in sqlite."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import numpy as np
import pytest
from click.testing import CliRunner
from command import run
from data_maker import make_dataset

from ocp_mamba.cli.main import main
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.jobs import train_once
from ocp_mamba.jobs.variants import VariantsJob, variant_settings
from ocp_mamba.presets import VARIANTS

TINY = ("--model-size", "tiny", "--batch-size", "32", "--epochs", "2", "--lr", "0.01", "--quiet")


def ladders(n=160, seed=0, **changed):
    """Chains of 3 or 4 that share only their upper concepts, so that half of them are whole."""
    rng = np.random.default_rng(seed)
    rows = [[i, 200 + i % 40, 250 + i % 20, 270][: 4 - i % 2] for i in range(n)]
    return make_dataset(
        n_chains=n,
        n_concepts=271,
        seed=seed,
        chain_values=np.concatenate(rows).astype(np.int32),
        chain_offsets=np.cumsum([0, *map(len, rows)]),
        split=rng.choice(3, n, p=[0.6, 0.25, 0.15]).astype(np.uint8),
        **changed,
    )


def related():
    """The same with a relation of each step."""
    plain = ladders()
    relation = np.arange(len(plain.chain_values)) % 2 + 1
    relation[plain.chain_offsets[:-1]] = 0
    meta = plain.meta | {"relations": ["is a", "part of"]}
    return ladders(chain_relation=relation.astype(np.uint16), meta=meta)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "ladders.npz"
    ladders().save(path)
    return path


@pytest.fixture
def three_layers(tmp_path):
    """Flags for as many layers as the preset hedged has stacks."""
    (tmp_path / "three.toml").write_text("[model]\nn_layers = 3\n")
    return "--config", tmp_path / "three.toml"


def runs():
    found = mlflow.search_runs(experiment_names=["ocp_mamba"], output_format="list")
    parents = [r for r in found if r.data.tags.get("kind") == "variants"]
    children = [r for r in found if r.data.tags.get("kind") == "variant"]
    return parents, children


def table(folder="outputs/variants"):
    found = json.loads((Path(folder) / "variants.json").read_text())
    return {v["name"]: v for v in found["variants"]}, found["scaling"]


def test_all_by_one_command_then_again_without_training(file, store, tmp_path, three_layers):
    said = run("variants", "--data", file, *TINY, *three_layers)
    (parent,), children = runs()
    assert parent.info.status == "FINISHED"
    rows, scaling = table()
    assert set(rows) == {"base", *VARIANTS} - {"scaling"}
    ran = {name for name, row in rows.items() if row["state"] == "ran"}
    assert ran == {"base", "tmd", "curriculum", "deep", "hard-negatives", "hedged"}
    assert rows["relations"]["reason"] == "the dataset has no relations"
    assert "not run: the dataset has no relations" in said
    assert "base, seed 0: training, 7 to go" in said
    assert "scaling, seed 0: training, 1 to go" in said
    assert rows["deep"]["parameters"] > 2 * rows["base"]["parameters"]
    assert rows["curriculum"]["steps"] < rows["base"]["steps"]
    for name in ran - {"base"}:
        gap = rows[name]["minus_base"]["cosine"]
        own, base = rows[name]["figures"]["cosine"], rows["base"]["figures"]["cosine"]
        assert gap["value"] == pytest.approx(own["value"] - base["value"])
        assert gap["low"] <= gap["value"] <= gap["high"]
        assert parent.data.metrics[f"{name}/minus_base_next_vec_cosine"] == pytest.approx(
            gap["value"]
        )
    assert scaling["state"] == "ran"
    coefficient = scaling["coefficients"]["cosine"]
    assert parent.data.metrics["scaling/next_vec_cosine"] == pytest.approx(coefficient["value"])
    assert parent.data.tags["gate.scaling_next_vec_cosine"] == coefficient["gate"]

    assert len(children) == 7
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    one = next(c for c in children if c.data.params["variant"] == "hard-negatives")
    assert one.data.params["train.hard_negatives"] == "8"
    assert one.data.params["ran.parameters"] == str(rows["hard-negatives"]["parameters"])
    assert {"ran.precision", "ran.compile", "ran.threads"} <= set(one.data.params)
    assert one.data.metrics["next_vec_cosine"] == pytest.approx(
        rows["hard-negatives"]["figures"]["cosine"]["value"]
    )
    history = mlflow.MlflowClient().get_metric_history(one.info.run_id, "val_next_vec_cosine")
    assert sorted(m.step for m in history) == [1, 2]
    curriculum = next(c for c in children if c.data.params["variant"] == "curriculum")
    assert curriculum.data.metrics["curriculum_longest_chain"] == 3
    listed = mlflow.MlflowClient().list_artifacts(parent.info.run_id, "reports")
    assert {Path(a.path).name for a in listed} == {
        "leak_report.json", "leak_report.md", "variants.json", "variants.md", "variants.png"
    }  # fmt: skip

    def no_training(*args, **kwargs):
        raise AssertionError("it was trained before")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_once, "fit", no_training)
        again = run("variants", "--data", file, *TINY, *three_layers)
    assert again.count("trained before") == 7
    assert table()[0] == rows, "the same figures, to the last digit"


def test_a_variant_that_fails_is_a_row_and_the_others_go_on(file, store, monkeypatch):
    train = train_once.fit_and_save

    def broken(model, *args, **kwargs):
        if model.config.n_layers == 12:
            raise RuntimeError("out of luck\nand more")
        return train(model, *args, **kwargs)

    monkeypatch.setattr(train_once, "fit_and_save", broken)
    said = run("variants", "--data", file, *TINY, "--only", "deep,1B", code=1)
    assert "failed variants: deep" in said
    rows, _ = table()
    deep = rows["deep"]
    assert (deep["state"], deep["reason"]) == ("failed", "RuntimeError: out of luck")
    assert rows["tmd"]["state"] == "ran"
    (parent,), _ = runs()
    assert parent.info.status == "FAILED"
    assert parent.data.tags["variant.deep"] == "failed"
    uri = f"{parent.info.artifact_uri}/reports/failed_deep.txt"
    assert "in broken" in mlflow.artifacts.load_text(uri)


def test_ctrl_c_loses_the_training_at_hand_alone(file, store, monkeypatch):
    train = train_once.fit_and_save

    def interrupted(model, *args, **kwargs):
        if model.config.n_layers == 12:
            raise KeyboardInterrupt
        return train(model, *args, **kwargs)

    words = ["variants", "--data", str(file), *TINY, "--only", "tmd,deep"]
    with monkeypatch.context() as patch:
        patch.setattr(train_once, "fit_and_save", interrupted)
        assert CliRunner().invoke(main, words).exit_code == 1
    (parent,), _ = runs()
    assert (parent.info.status, parent.data.tags["ended.reason"]) == ("KILLED", "Ctrl-C")
    assert set(table()[0]) == {"base", "tmd"}, "the table as it stood"
    said = run(*words)
    assert said.count("trained before") == 2
    assert set(table()[0]) == {"base", "tmd", "deep"}


def test_relations_and_seeds(store, tmp_path):
    related().save(tmp_path / "known.npz")
    run("variants", "--data", "known.npz", *TINY, "--only", "relations", "--seeds", "0,3")
    rows, scaling = table()
    assert rows["relations"]["state"] == "ran"
    assert rows["relations"]["parameters"] > rows["base"]["parameters"]
    assert scaling is None
    _, children = runs()
    assert sorted(c.info.run_name for c in children) == [
        "base seed 0", "base seed 3", "relations seed 0", "relations seed 3",
    ]  # fmt: skip


def settings(name, dataset, model=None, **train):
    job = VariantsJob(
        data=Path("x"),
        output=Path("x"),
        models=Path("x"),
        model=model or ModelConfig(),
        train=TrainConfig(**train),
        seeds=(0,),
    )
    return variant_settings(job, name, dataset)


def test_a_variant_that_the_data_or_the_base_makes_pointless_is_not_run():
    zero = ladders(chain_tmd=np.zeros((160, 16), np.float32))
    for name, dataset, changed, reason in [
        ("tmd", ladders(tmd=False), {}, "no TMD codes"),
        ("tmd", zero, {}, "no TMD codes"),
        ("relations", ladders(), {}, "no relations"),
        ("deep", ladders(), {"model": ModelConfig(n_layers=12)}, "the base is that already"),
        ("curriculum", ladders(), {"curriculum": 0.5}, "the base is that already"),
    ]:
        with pytest.raises(Exception, match=reason):
            settings(name, dataset, **changed)
    half = ladders().chain_tmd.copy()
    half[::2] = 0
    assert settings("tmd", ladders(chain_tmd=half))[2] == "50.0% of the chains have no TMD codes"


def test_a_dataset_that_cannot_be_halved_says_so(store, tmp_path):
    siblings = np.array([[i, 60, 61] for i in range(60)], np.int32)
    make_dataset(
        n_chains=60,
        n_concepts=62,
        chain_values=siblings.reshape(-1),
        chain_offsets=np.arange(0, 181, 3),
    ).save(tmp_path / "siblings.npz")
    said = run("variants", "--data", "siblings.npz", *TINY, "--only", "scaling")
    assert "Scaling coefficient: not run: 60 chains cannot be halved" in said
    (parent,), _ = runs()
    assert parent.data.tags["gate.scaling_faiss_retrieval_p1"] == "not-run"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--only", "1B,9Z"],
            "'9Z' is unknown; choose of tmd, curriculum, deep, hard-negatives, hedged, relations, "
            "scaling, memory, ",
        ),
        (["--only", "1B,1B"], "names a variant twice"),
        (["--seeds", "a"], "whole numbers"),
        (["--epochs", "0"], "0"),
    ],
)
def test_words_that_mean_nothing_are_refused(file, words, message):
    assert message in run("variants", "--data", file, *words, code=2)
