"""The transfer job: a model and its baselines on a dataset that they have never seen."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
from command import run
from data_maker import make_dataset
from trainings import seeded

from ocp_mamba.baselines.checkpoint import load_predictor
from ocp_mamba.baselines.simple import ContextMean, Persistence, ResidualRidge
from ocp_mamba.data.analysis.learnt import Learnt, learnt_from
from ocp_mamba.data.analysis.train_chains import (
    draw_train_chains,
    joined_train,
    with_train_chains,
)
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import DatasetError
from ocp_mamba.jobs.transfer.residual import Interpolated, best_weights, new_targets
from ocp_mamba.model.checkpoint import save_checkpoint

FITTED = ("global_mean", "ridge", "nearest_neighbour")


def named(dataset: Dataset, word: str) -> Dataset:
    return replace(dataset, texts=np.array([f"{word} {i}" for i in range(dataset.n_concepts)]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A source, a new dataset with other concepts, and a model that learnt from the source."""
    folder = tmp_path_factory.mktemp("transfer")
    source = named(make_dataset(150, 60, seed=1, tmd=False), "source")
    new = named(make_dataset(80, 40, seed=2, tmd=False), "new")
    source.save(folder / "source.npz")
    new.save(folder / "new.npz")
    save_checkpoint(
        folder / "m.pt",
        seeded(),
        dataset_fingerprint=source.fingerprint,
        encoder=source.meta["encoder"],
        learnt=learnt_from(source, 1).to_block(),
    )
    return SimpleNamespace(folder=folder, source=source, new=new)


def words(made, *more: str) -> list[str]:
    names = {"--model": "m.pt", "--data": "source.npz", "--to": "new.npz"}
    files = [word for flag, name in names.items() for word in (flag, str(made.folder / name))]
    return ["transfer", *files, "--epochs", "1", "--seeds", "0,1", "--quiet", *more]


def test_zero_shot_trains_nothing(made, store, tmp_path):
    said = run(*words(made, "--chains", "0", "--models", "kept", "--output", "t"))
    assert "| 0        | persistence" in said
    assert "- 0 chains: the highest cosine" in said
    assert not list((tmp_path / "kept").glob("*.pt"))
    (top,) = mlflow.search_runs(search_all_experiments=True, output_format="list",
                                filter_string="run_name = 'transfer val'")  # fmt: skip
    assert top.data.metrics["next_vec_cosine_0_chains"] is not None
    assert "verdict.next_vec_cosine_0_chains" in top.data.tags


@pytest.mark.slow
def test_one_table_for_every_number_of_chains(made, store, tmp_path):
    args = words(made, "--chains", "0,3,all", "--residual", "--output", "t", "--models", "kept")
    said = run(*args)
    table = json.loads((tmp_path / "t" / "transfer.json").read_text())
    fixed = {
        "persistence", "context_mean", *(f"{name} (source)" for name in FITTED),
        "last vector and context mean", "residual ridge (source)", "model, interpolated",
    }  # fmt: skip
    fitted = {f"{name} ({kind})" for name in FITTED for kind in ("new", "both")}
    for chains, rows in table["chains"].items():
        found = {row["predictor"]: row for row in rows["rows"]}
        assert set(found) == fixed | {"model"} | (fitted if chains != "0" else set())
        best = max(found.values(), key=lambda row: row["figures"]["cosine"]["value"])
        assert rows["winners"]["cosine"] == best["predictor"]
        assert f"has {best['predictor']}" in said
        assert rows["split"] == "val"
    seeds = {
        chains: {row["predictor"]: len(row["each_seed"]["cosine"]) for row in rows["rows"]}
        for chains, rows in table["chains"].items()
    }
    assert seeds["0"]["model"] == 1
    assert seeds["3"]["model"] == seeds["all"]["model"] == seeds["3"]["ridge (new)"] == 2
    assert seeds["all"]["ridge (new)"] == seeds["3"]["ridge (source)"] == 1

    n = made.new.n_examples("val")
    unseen = {
        chains: rows["rows"][0]["figures"]["cosine, unseen"]["n"]
        for chains, rows in table["chains"].items()
    }
    assert unseen["0"] == n, "the source has no concept of the new dataset"
    known = learnt_from(made.new, 1).strata(made.new, "val")["unseen"].sum()
    assert unseen["all"] == known < unseen["3"] <= n

    runs = {r.info.run_name: r for r in mlflow.search_runs(
        search_all_experiments=True, output_format="list")}  # fmt: skip
    top = runs["transfer val"]
    assert top.data.tags["test_split_evaluated"] == "false"
    children = {
        name for name, r in runs.items()
        if r.data.tags.get("mlflow.parentRunId") == top.info.run_id
    }  # fmt: skip
    assert children == {
        "0 chains", "3 chains seed 0", "3 chains seed 1", "all chains seed 0", "all chains seed 1",
    }  # fmt: skip
    child = runs["3 chains seed 1"].data
    assert child.metrics["next_vec_cosine"] == pytest.approx(
        {r["predictor"]: r for r in table["chains"]["3"]["rows"]}["model"]["each_seed"]["cosine"][1]
    )
    assert child.tags["baseline.persistence"].startswith("next_vec_cosine ")

    kept = sorted((tmp_path / "kept").glob("*.pt"))
    assert len(kept) == 4
    times = [path.stat().st_mtime_ns for path in kept]
    saved = load_predictor(kept[0])
    learnt = Learnt.from_block(saved.learnt)
    assert learnt.examples_of(made.source, "train").all()
    assert learnt.examples_of(made.new, "train").any()
    run(*args)
    assert [path.stat().st_mtime_ns for path in kept] == times, "nothing is trained again"
    assert json.loads((tmp_path / "t" / "transfer.json").read_text()) == table


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--chains", "500"), "--chains 500: the train split of"),
        (("--chains", "some"), "whole numbers or all"),
        (("--chains", "1,1"), "names a number twice"),
        (("--model", "baseline:ridge"), "the baselines are in the table of every model"),
    ],
)
def test_what_is_refused(made, store, more, message):
    said = run(*words(made, *more), code=2)
    assert message in " ".join(said.split())


def test_another_encoder_is_refused(made, store):
    meta = made.new.meta | {"encoder": {"name": "other", "weight_hash": "1" * 64}}
    replace(made.new, meta=meta).save(made.folder / "other.npz")
    said = run(*words(made, "--to", str(made.folder / "other.npz"), "--chains", "0"), code=2)
    assert "encoder mismatch" in said


def test_draws_are_nested_and_keep_val_and_the_bank(made):
    few, more = (draw_train_chains(made.new, k, seed=4) for k in (5, 20))
    assert set(few) < set(more) <= set(made.new.chains_in("train"))
    assert set(few) != set(draw_train_chains(made.new, 5, seed=5))
    part = with_train_chains(made.new, few)
    assert len(part.chains_in("train")) == 5
    np.testing.assert_array_equal(part.bank, made.new.bank)
    for split in ("val", "test"):
        np.testing.assert_array_equal(part.examples(split).target, made.new.examples(split).target)
    with pytest.raises(DatasetError, match="999 train chains wanted"):
        draw_train_chains(made.new, 999, seed=0)


def test_joined_train_has_the_examples_of_both(made):
    both = joined_train(made.source, made.new)
    assert both.n_examples("train") == sum(
        data.n_examples("train") for data in (made.source, made.new)
    )
    texts = both.texts[both.examples("train").target]
    wanted = [d.texts[d.examples("train").target] for d in (made.source, made.new)]
    assert texts.tolist() == [t for part in wanted for t in part]
    assert both.n_examples("val") == 0


def test_weights_are_the_best_of_the_source_and_need_no_model():
    source = make_dataset(150, 60, seed=1, tmd=False)
    chosen, _ = new_targets(source)
    weights = best_weights(None, source, chosen)
    assert weights[0] == 0
    assert sum(weights) == pytest.approx(1)
    assert best_weights(Persistence(), source, chosen) is not None
    x = torch.nn.functional.normalize(torch.randn(2, 4, 768), dim=-1)
    mean = Interpolated(Persistence(), (0.0, 0.0, 1.0)).predict_all(x)
    torch.testing.assert_close(mean, ContextMean().predict_all(x))
    last = Interpolated(Persistence(), (0.5, 0.5, 0.0)).predict_all(x)
    torch.testing.assert_close(last, x)


def test_the_residual_ridge_learns_a_step_and_keeps_the_rest():
    """Every target is its last vector moved along one direction."""
    data = make_dataset(150, 60, seed=1, tmd=False, min_length=4)
    rng = np.random.default_rng(0)
    along = rng.standard_normal(768).astype(np.float32)
    along /= np.linalg.norm(along)
    bank = data.bank.copy()
    for i in range(1, len(bank)):
        bank[i] = bank[i - 1] + 0.5 * along
        bank[i] /= np.linalg.norm(bank[i])
    starts = rng.integers(0, 50, data.n_chains)
    values = np.concatenate([s + np.arange(n) for s, n in zip(starts, data.lengths, strict=True)])
    moved = replace(data, bank=bank, chain_values=(values % 60).astype(np.int32))
    examples = moved.examples("val")
    last, target = (torch.from_numpy(moved.bank[i]) for i in (examples.last, examples.target))
    found = ResidualRidge(moved, last, target)
    predicted = found.predict_all(last[None])[0]
    plain = float((last * target).sum(-1).mean())
    assert float((predicted * target).sum(-1).mean()) > plain
    still = torch.nn.functional.normalize(torch.randn(1, 1, 768), dim=-1)
    assert float((found.predict_all(still) * still).sum()) > 0.5
