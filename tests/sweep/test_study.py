"""The sweep as a person types it, in this process: tracked, ended, gone on with, refused."""

from __future__ import annotations

import os
import signal
import time
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import optuna
import pytest
from command import run
from data_maker import make_dataset
from drawing import drawing
from mlflow.entities import Run
from optuna.trial import TrialState
from postgres import PASSWORD, USER, Postgres
from sweeps import Files, require_exactly, runs_of, study_of

from ocp_mamba.config import TrainConfig, model_config
from ocp_mamba.errors import TrainingError
from ocp_mamba.model.checkpoint import load_checkpoint
from ocp_mamba.sweep import study as study_module
from ocp_mamba.sweep import worker as worker_module
from ocp_mamba.sweep.attempts import MAX_RETRIES, begin_again, history
from ocp_mamba.sweep.storage import open_storage
from ocp_mamba.system.process import workers_of
from ocp_mamba.tracking.stale_runs import find_stale_runs
from ocp_mamba.training.state import EpochResult


def artifacts(run_id: str, folder: str = "") -> set[str]:
    return {Path(a.path).name for a in mlflow.MlflowClient().list_artifacts(run_id, folder)}


def of_trial(number: int) -> Run:
    (child,) = [c for c in runs_of("trial") if c.data.tags["sweep.trial"] == str(number)]
    return child


def at_epoch(monkeypatch: pytest.MonkeyPatch, trial: int, epoch: int, action: Any) -> None:
    """Do something once, after a trial's epoch was tracked."""
    real, done = worker_module._report, []

    def report(settings: Any, optuna_trial: Any, result: EpochResult) -> None:
        if (optuna_trial.number, result.epoch) == (trial, epoch) and not done:
            done.append(1)
            action()
        real(settings, optuna_trial, result)

    monkeypatch.setattr(worker_module, "_report", report)


def test_a_sweep_is_tracked_goes_on_and_trains_its_best_again(files: Files, journal: str) -> None:
    said = run(*files.new("--n-trials", 3, epochs=3))
    assert "3 of 3" in said
    children = require_exactly(3, journal)
    (parent,) = runs_of("sweep")
    best = max((c for c in children if c.info.status == "FINISHED"),
               key=lambda c: c.data.metrics["objective.cosine"])  # fmt: skip
    number = best.data.tags["sweep.trial"]
    assert parent.data.tags["best.run"] == best.info.run_id
    assert f"(trial {number})" in said
    value = best.data.metrics["objective.cosine"]
    assert parent.data.metrics["best_val_next_vec_cosine"] == value
    assert value == best.data.metrics["best_val_next_vec_cosine"]
    shown = said[said.index("on the val split  ") :]
    for name in ("persistence", "context_mean", "global_mean", "ridge", "nearest_neighbour"):
        assert name in shown, "the best trial stands beside the baselines"
    lead = parent.data.metrics["best_minus_baseline_val_next_vec_cosine"]
    above = "The best trial is above every baseline." in parent.data.tags["mlflow.note.content"]
    assert above == (lead > 0)
    assert f", {'baseline' if lead >= 0 else 'below'} " in said
    assert parent.data.params["study"] == "small"
    assert parent.data.params["storage"] == journal
    assert best.data.params["train.lr"] == best.data.params["search.train.lr"]
    assert float(parent.data.tags["best.train.lr"]) == float(best.data.params["train.lr"])
    assert best.data.params["model.d_model"] == "32"
    assert artifacts(parent.info.run_id) >= {"search_space.yaml", "trials.csv", "best.toml"}
    config = tomllib.loads((files.folder / "outputs/sweeps/small/best.toml").read_text())
    assert config["train"]["lr"] == float(best.data.params["train.lr"])
    assert model_config("tiny", **config["model"]).d_model == 32
    inputs = mlflow.get_run(best.info.run_id).inputs.dataset_inputs
    assert {i.dataset.name for i in inputs} == {"small-train", "small-val"}

    with drawing():
        more = run("sweep", "--join", "small", "--n-trials", 5, "--quiet", "--retrain-best",
                   "--retrain-epochs", 1)  # fmt: skip
    assert "3 of 5 trials" in more
    require_exactly(5, journal)
    assert artifacts(parent.info.run_id, "plots") >= {
        "history.png", "importances.png", "parallel_coordinate.png", "slice.png", "epochs.png"
    }  # fmt: skip
    drawn = (files.folder / "outputs/sweeps/small").glob("*.png")
    assert all(path.stat().st_size > 5000 for path in drawn)
    again = mlflow.get_run(runs_of("sweep")[0].data.tags["best.retrained_run"])
    assert again.data.tags["sweep.parent"] == parent.info.run_id
    assert again.data.params["train.lr"] == runs_of("sweep")[0].data.tags["best.train.lr"]
    assert again.data.params["train.max_epochs"] == "1"
    version = mlflow.MlflowClient().get_model_version_by_alias("ocp-mamba-lvm", "candidate")
    assert version.tags["run_id"] == again.info.run_id


@pytest.mark.slow
def test_a_storage_that_goes_away_is_named_and_the_trial_goes_on_when_it_is_back(
    files: Files, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = postgres.create_database("goes_away")
    monkeypatch.setenv("OCP_MAMBA_SWEEP_STORAGE", address)
    at_epoch(monkeypatch, trial=1, epoch=1, action=postgres.kill)
    words = files.new("--n-trials", 2, "--pruner", "none", "--grace", 2)
    try:
        said = run(*words, code=2)
    finally:
        postgres.start()
    assert f"storage postgresql+psycopg://{USER}:***@" in said
    assert "Run the sweep again" in said
    assert PASSWORD not in said
    assert of_trial(1).info.status == "KILLED"
    assert runs_of("sweep")[0].data.params["storage"].count("***") == 1
    run(*words)
    require_exactly(2, address)


def test_trials_without_a_worker_are_taken_back_or_given_up(
    files: Files, journal: str, store: str
) -> None:
    run(*files.new("--n-trials", 1, epochs=1))
    storage = open_storage(journal, tracking_uri=store, grace=60)
    joined = study_module.join("small", storage, n_trials=3, store=store)
    params = {"train.lr": 1e-3, "train.batch_size": 8, "model.dropout": 0.1}
    run_id = of_trial(0).info.run_id
    lost = {
        "run_id": run_id,
        "heartbeat": 0.0,
        "earlier_attempts": list(range(100, 100 + MAX_RETRIES)),
    }
    killed_before_its_first_heartbeat: dict[str, Any] = {}
    for notes in (lost, killed_before_its_first_heartbeat):
        joined.study.add_trial(
            optuna.create_trial(
                state=TrialState.RUNNING,
                params=params,
                distributions=dict(joined.space.distributions),
                user_attrs=notes,
            )
        )
    claimed = joined.claim()
    states = [t.state for t in joined.trials()]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, TrialState.FAIL, TrialState.RUNNING]
    assert claimed is not None
    assert history(joined.frozen(claimed)) == [2], "begun again"
    assert of_trial(0).info.status == "FAILED"
    assert "11 workers were lost" in of_trial(0).data.tags["ended.reason"]


def test_a_sweep_whose_workers_are_gone_is_stale_and_one_with_a_worker_is_not(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    at_epoch(monkeypatch, trial=0, epoch=1, action=lambda: seen.extend(find_stale_runs(0)))
    run(*files.new("--n-trials", 1, epochs=1))
    assert seen == []
    (parent,) = runs_of("sweep")
    assert not workers_of(parent.data.tags), "it left"
    client = mlflow.MlflowClient()
    client.update_run(parent.info.run_id, status="RUNNING")
    host = of_trial(0).data.tags["process.host"]
    client.set_tag(parent.info.run_id, f"process.worker/{host}/1", "1.00")
    (stale,) = find_stale_runs(0)
    assert (stale.run_id, stale.status) == (parent.info.run_id, "KILLED")
    client.set_tag(parent.info.run_id, "process.worker/another-host/1", "1.00")
    assert find_stale_runs(0) == []


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_each_pruner_stops_who_is_behind(pruner: str) -> None:
    config = TrainConfig(max_epochs=9)
    study = optuna.create_study(direction="maximize", pruner=study_module.pruner_of(pruner, config))
    stopped = 0
    for number in range(20):
        trial = study.ask()
        for epoch in range(1, 10):
            trial.report(0.5 - 0.01 * number, epoch)
            if trial.should_prune():
                stopped += 1
                break
        study.tell(trial, 0.5 - 0.01 * number)
    assert stopped >= 5


def test_trials_that_are_behind_are_pruned_not_failed(
    files: Files, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "STARTUP_TRIALS", 2)
    reported = []
    real = worker_module._report

    def falling(settings: Any, trial: Any, result: EpochResult) -> None:
        """Each trial is worse than the one before."""
        value = 0.5 - 0.01 * trial.number
        reported.append((trial.number, result.epoch))
        real(settings, trial, replace(result, val={**result.val, "next_vec_cosine": value}))

    monkeypatch.setattr(worker_module, "_report", falling)
    said = run(*files.new("--n-trials", 4, epochs=2))
    assert "by asha at epoch 1" in said
    children = require_exactly(4, journal)
    pruned = {int(c.data.tags["sweep.trial"]) for c in children if c.info.status == "KILLED"}
    assert pruned == {2, 3}
    for number in pruned:
        assert (number, 2) not in reported
        assert of_trial(number).data.tags["ended.reason"] == "pruned: by asha at epoch 1"
    assert runs_of("sweep")[0].data.metrics["trials_pruned"] == 2


def test_several_objectives_give_a_front_and_no_pruning(files: Files, journal: str) -> None:
    said = run(*files.new("--n-trials", 3, "--objective", "cosine,p1", "--study", "two", epochs=1))
    assert "pruner none" in said
    assert "Pareto front trials" in said
    (parent,) = runs_of("sweep")
    assert "pareto_front.png" in artifacts(parent.info.run_id, "plots")
    for child in runs_of("trial"):
        assert {"objective.cosine", "objective.p1"} <= set(child.data.metrics)
    study = study_of(journal, "two")
    assert [len(t.values) for t in study.trials] == [2, 2, 2]
    refused = run(*files.new("--objective", "cosine,p1", "--pruner", "asha"), code=2)
    assert "one objective only" in refused


def test_ctrl_c_gives_the_trial_back_and_running_again_goes_on_in_its_run(
    files: Files, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c() -> None:
        # a shell starts what runs in the background with Ctrl-C ignored
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGINT)

    at_epoch(monkeypatch, trial=1, epoch=1, action=ctrl_c)
    words = files.new("--n-trials", 3, "--pruner", "none")
    run(*words, code=1)
    held = of_trial(1)
    assert held.info.status == "KILLED"
    assert held.data.tags["ended.reason"].startswith("Ctrl-C")
    (parent,) = runs_of("sweep")
    assert parent.info.status == "KILLED"
    assert parent.data.tags["ended.reason"] == "Ctrl-C, after 1 of 3 trials"
    run(*words)
    children = require_exactly(3, journal)
    assert held.info.run_id in {c.info.run_id for c in children}
    assert of_trial(1).data.tags["sweep.attempts"] == "2"
    assert "ended.reason" not in of_trial(1).data.tags


def test_a_worker_that_was_held_up_leaves_the_trial_to_who_has_it(
    files: Files, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker takes trial 0 over in the middle of its epoch: it is not logged twice."""

    def taken_over() -> None:
        study = study_of(journal)
        (trial,) = study.get_trials()
        begin_again(study, trial)

    at_epoch(monkeypatch, trial=0, epoch=1, action=taken_over)
    said = run(*files.new("--n-trials", 2, "--pruner", "none"))
    assert "lost" in said
    children = require_exactly(2, journal)
    assert {c.data.tags["sweep.attempts"] for c in children} == {"1", "2"}


def test_failed_trials_say_why_and_three_in_a_row_end_the_worker(
    files: Files, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverge(*args: Any, **kwargs: Any) -> None:
        raise TrainingError("step 3: the loss is not finite")

    monkeypatch.setattr(worker_module, "fit", diverge)
    said = run(*files.new("--n-trials", 5), code=2)
    assert "3 trials in a row failed" in said
    assert "the loss is not finite" in said
    children = runs_of("trial")
    assert [c.info.status for c in children] == ["FAILED"] * 3
    assert all("not finite" in c.data.tags["ended.reason"] for c in children)
    assert [t.state for t in study_of(journal).trials] == [TrialState.FAIL] * 3
    assert runs_of("sweep")[0].info.status == "FAILED"


def test_time_limits(files: Files, journal: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(*files.new("--n-trials", 9, "--timeout", "0.001s"))
    assert "no further trial is begun" in said
    assert runs_of("trial") == []
    assert runs_of("sweep")[0].data.tags["ended.reason"] == "time limit, after 0 of 9 trials"

    said = run(*files.new("--n-trials", 1, "--study", "slow", "--trial-timeout", "0.001s"))
    assert "the time limit of 0.001 s" in said
    assert of_trial(0).info.status == "KILLED"
    assert study_of(journal, "slow").trials[0].state == TrialState.PRUNED


def test_a_time_limit_that_ends_within_an_epoch_prunes_the_trial_and_cuts_nothing_in_two(
    files: Files, journal: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is over while the first epoch is written, and the second has begun."""
    at_epoch(monkeypatch, trial=0, epoch=1, action=lambda: time.sleep(3.5))
    said = run(*files.new("--n-trials", 1, "--trial-timeout", "3s", epochs=50))
    assert "the time limit of 3 s" in said
    (child,) = require_exactly(1, journal)
    assert child.data.tags["sweep.state"] == "pruned"
    assert child.data.tags["ended.reason"] == "pruned: the time limit of 3 s"
    (trial,) = study_of(journal).trials
    assert trial.state == TrialState.PRUNED
    assert trial.intermediate_values == {1: child.data.metrics["val_next_vec_cosine"]}


def test_warm_start_tries_the_best_of_an_earlier_study_first(files: Files, journal: str) -> None:
    run(*files.new("--n-trials", 2, "--pruner", "none", epochs=1))
    old = study_of(journal)
    said = run(*files.new("--n-trials", 1, "--study", "next", "--warm-start", "small", epochs=1))
    assert "2 of the best configurations of small" in said
    first = study_of(journal, "next").trials[0]
    assert first.params == old.best_trial.params
    assert first.user_attrs["warm_start"] == f"small, trial {old.best_trial.number}"
    refused = run(*files.new("--study", "x", "--warm-start", "none-such"), code=2)
    assert "has no study 'none-such'; it has: next, small" in refused


def test_one_worker_repeats_a_sweep_exactly(files: Files, journal: str) -> None:
    for name in ("a", "b"):
        run(*files.new("--n-trials", 2, "--study", name, "--seed", 3, epochs=1))
    a, b = (study_of(journal, name).trials for name in ("a", "b"))
    assert [(t.params, t.values) for t in a] == [(t.params, t.values) for t in b]
    assert a[0].params != a[1].params


@pytest.mark.slow
def test_a_sweep_of_models_that_know_relations(files: Files, journal: str) -> None:
    make_dataset(n_chains=60, n_concepts=40, seed=4, relations=True).save("known.npz")
    words = [*files.new("--preset", "relations", epochs=1), "--data", "known.npz"]
    run(*words, "--n-trials", 1)
    run(*words, "--n-trials", 2, "--retrain-best", "--retrain-epochs", 1)
    for child in require_exactly(2, journal, "known"):
        assert child.data.params["model.relations"] == "is a, part of"
    folder = files.folder / "outputs/sweeps/known"
    assert load_checkpoint(folder / "best.pt").model_config.relations == ("is a", "part of")
    best = ("train", "--config", folder / "best.toml", "--model-size", "tiny", "--quiet")
    run(*best, "--data", "known.npz", "--max-epochs", 1)
    said = run(*best, "--data", "small.npz", code=2)
    assert "the model takes the relations is a, part of" in " ".join(said.split())
    assert "small.npz has none; leave model.relations out" in said
    assert "no chain_relation" in run(*files.new("--preset", "relations"), code=2)
    assert "--preset cannot go with --join" in run(
        "sweep", "--join", "known", "--preset", "relations", code=2
    )
