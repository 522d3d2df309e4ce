"""The whole training job, interrupted and gone on with, in its own MLflow run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from command import run
from data_maker import make_dataset
from trainings import QUICK, TINY, seeded

from ocp_mamba.baselines.simple import Persistence
from ocp_mamba.errors import OutputError, ResumeError, TrackingError, TrainingError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.jobs import train as job_module
from ocp_mamba.jobs.preconditions import constant_targets
from ocp_mamba.jobs.train import run_training
from ocp_mamba.jobs.train_job import TrainJob
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.system.files import sha256_of
from ocp_mamba.tracking.operations import apply, model_entry
from ocp_mamba.tracking.run import TrackedRun

RUNS = "params.ran.processes != ''"


class Interruption(Exception):
    pass


@pytest.fixture
def job(store: str, tmp_path: Path) -> TrainJob:
    make_dataset(n_chains=60, n_concepts=40, seed=4).save(tmp_path / "data.npz")
    return TrainJob(
        tmp_path / "data.npz", tmp_path / "out" / "model.pt", TINY, QUICK, progress=False
    )


@pytest.fixture
def interrupted(job: TrainJob, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A training that failed after the state of epoch 2 was written, before it was logged."""
    real = TrackedRun.on_epoch

    def fails(self: TrackedRun, result: Any) -> None:
        if result.epoch == 2:
            raise Interruption
        real(self, result)

    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "on_epoch", fails)
        with pytest.raises(Interruption):
            run_training(job, said.append)
    (left,) = runs()
    assert left.info.status == "FAILED"
    folder = job.output.parent / left.info.run_id
    assert said[-1] == f"\nthe last state is in {folder}: go on with the same command and --resume"
    assert not job.output.exists(), "the shared output is written at the end"
    return left, folder


def runs() -> list[mlflow.entities.Run]:
    found = mlflow.search_runs(
        experiment_names=["ocp_mamba"], output_format="list", order_by=["start_time"],
        filter_string="tags.mlflow.parentRunId IS NULL",
    )  # fmt: skip
    return list(found)


def steps(run_id: str, name: str) -> list[int]:
    points = mlflow.MlflowClient().get_metric_history(run_id, name)
    return [p.step for p in sorted(points, key=lambda p: p.timestamp)]


def test_a_resumed_training_goes_on_in_its_run(
    job: TrainJob,
    interrupted: Any,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    empty_database: Path,
    store: str,
) -> None:
    """First what is refused at once, then the resumption, as a command of ``mlflow run``."""
    left, folder = interrupted
    again = replace(job, resume=True)
    with monkeypatch.context() as patch:
        patch.setattr(job_module, "prepare", lambda *_: pytest.fail("refused only after the data"))
        with pytest.raises(ResumeError, match=r"train\.lr was 0\.003, now 0\.1"):
            run_training(replace(again, train=replace(QUICK, lr=0.1)), print)
        shutil.copyfile(empty_database, tmp_path / "elsewhere.db")
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'elsewhere.db'}")
        with pytest.raises(ResumeError, match=r"does not have it. It was begun in .*mlflow\.db"):
            run_training(again, print)
    mlflow.set_tracking_uri(store)
    mlflow.delete_run(left.info.run_id)
    with pytest.raises(ResumeError, match=r"it was deleted in .*mlflow runs restore"):
        run_training(again, print)
    mlflow.MlflowClient().restore_run(left.info.run_id)
    make_dataset(n_chains=60, n_concepts=40, seed=5).save(tmp_path / "other.npz")
    with pytest.raises(ResumeError, match=r"begun on dataset .*, .*other\.npz is"):
        run_training(replace(again, data=tmp_path / "other.npz"), print)

    made = mlflow.MlflowClient().create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    said: list[str] = []
    outcome = run_training(again, said.append)
    assert f"--resume: run {left.info.run_id} goes on from {folder / 'model.last.pt'}" in said
    project = mlflow.get_run(made)
    assert project.info.status == "FINISHED"
    assert project.data.tags["resumed.run"] == left.info.run_id == outcome.run_id
    (finished,) = runs()
    assert finished.info.status == "FINISHED"
    assert finished.data.tags["resumed.times"] == "1"
    assert "ended.reason" not in finished.data.tags
    for name in ("val_next_vec_cosine", "train_loss_total", "best_epoch", "epoch_seconds"):
        assert steps(left.info.run_id, name) == [1, 2, 3], name
    for name, value in finished.data.metrics.items():
        if not name.startswith("system/"):
            assert len(set(steps(left.info.run_id, name))) == len(steps(left.info.run_id, name))
        assert np.isfinite(value)
    assert outcome.version is not None
    assert outcome.version.tags["checkpoint.sha256"] == sha256_of(job.output)
    assert sorted(p.name for p in folder.glob("*.pt")) == ["model.pt"]
    assert len(finished.inputs.dataset_inputs) == 2
    assert len(finished.outputs.model_outputs) == 4, "three epochs, and the model for people"
    children = mlflow.search_runs(
        experiment_names=["ocp_mamba"], output_format="list",
        filter_string=f"tags.mlflow.parentRunId = '{left.info.run_id}'",
    )  # fmt: skip
    assert len({c.info.run_name for c in children}) == len(children) == 5


def test_what_was_not_evaluated_is_not_registered(store: str, tmp_path: Path) -> None:
    """Another process writes to the file: before it is read, before it is stored, while it is."""
    best, model = tmp_path / "model.pt", seeded()

    def write(seed: int) -> None:
        save_checkpoint(best, seeded(seed=seed), dataset_fingerprint="f" * 64, encoder={})

    write(0)
    _, sha256 = job_module._saved(best, model)
    write(1)
    with pytest.raises(TrainingError, match=r"does not hold the weights .* nothing was reg"):
        job_module._saved(best, model)
    run = TrackedRun.__new__(TrackedRun)
    with pytest.raises(TrackingError, match=r"that of the evaluated model is .* nothing was reg"):
        run.log_models(best, 1, sha256=sha256)
    made = mlflow.MlflowClient().create_run("0").info.run_id
    operation = model_entry(1, best) | {"run_id": made}
    write(2)
    with pytest.raises(Exception, match="has changed since it was evaluated; nothing was stored"):
        apply(operation)
    (row,) = mlflow.search_logged_models(["0"], output_format="list")
    assert "checkpoint.sha256" not in row.tags


def test_the_command_refuses_at_once_and_before_it_loads_anything(tmp_path: Path) -> None:
    """In a process of its own, which must not have loaded torch when it ends."""
    (tmp_path / "data.npz").touch()
    (tmp_path / "folder.pt").mkdir()
    code = (
        "import sys\n"
        "from ocp_mamba.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as end:\n    print('torch' in sys.modules, end.code)"
    )

    def refused(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, "train", "--data", "data.npz", *words],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == "False 2", done.stdout + done.stderr
        return " ".join(done.stderr.split())

    assert "folder.pt is a folder; name the .pt file to write" in refused("--output", "folder.pt")
    assert "lr must be a finite number" in refused("--lr", "inf")
    assert "lr must be a finite number" in refused("--lr", "nan")
    begun = tmp_path / "out" / "begun"
    begun.mkdir(parents=True)
    (begun / "run.json").write_text(
        '{"run_id": "begun", "output": "m.pt", "asked": {"train": {"lr": 9}}, "started": 1,'
        ' "dataset": "d"}'
    )
    assert "train.lr was 9, now 0.001" in refused("--output", "out/m.pt", "--resume")


@pytest.mark.slow
def test_a_single_concept_is_trained_warned_of_and_fails_a_gate(store: str, tmp_path: Path) -> None:
    many = make_dataset(n_chains=40, n_concepts=2, seed=1, max_length=4)
    single = make_dataset(
        n_chains=40, n_concepts=2, seed=1, max_length=4,
        chain_values=np.zeros_like(many.chain_values),
    )  # fmt: skip
    single.save(tmp_path / "single.npz")
    said = run("train", "--data", "single.npz", "--model-size", "tiny", "--n-layers", 1,
               "--max-epochs", 1, "--quiet", "--output", "m.pt")  # fmt: skip
    for split in ("train", "val"):
        assert f"WARNING: all targets of the {split} split are one vector" in said
    (tracked,) = runs()
    assert tracked.info.status == "FINISHED"
    assert tracked.data.tags["gate.targets_vary"] == gates.FAIL


def test_targets_that_do_not_vary_fail_a_gate_and_are_warned_of() -> None:
    many = make_dataset(n_chains=40, n_concepts=3, seed=1, max_length=4)
    alike = np.where(np.arange(len(many.chain_values)) % 2, 1, 2).astype(np.int32)
    bank = many.bank.copy()
    bank[2] = bank[1]  # two concepts of one vector
    for dataset, verdict, warned in (
        (many, gates.PASS, 0),
        (replace(many, chain_values=alike, bank=bank), gates.FAIL, 2),
    ):
        evaluated = evaluate(Persistence(), dataset, "val", name="persistence")
        assert gates.targets_gate(evaluated) == verdict
        assert len(constant_targets(dataset)) == warned
    assert gates.targets_gate(replace(evaluated, scalars={})) == gates.NOT_RUN


def test_an_output_error_of_the_folder_is_no_error_of_the_store(
    job: TrainJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("cannot write run.json: No space left on device")

    monkeypatch.setattr("ocp_mamba.training.run_folder.RunFolder.note", full)
    with pytest.raises(OutputError, match="No space left"):
        run_training(job, print)
    (left,) = runs()
    assert left.info.status == "FAILED"
