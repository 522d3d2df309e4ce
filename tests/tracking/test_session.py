import math
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
import torch
from servers import free_port
from tracked import train_tracked

from ocp_mamba import errors
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.model.lvm import OCPMambaLVM
from ocp_mamba.system.process import EXIT_KILLED, Killed
from ocp_mamba.tracking import session
from ocp_mamba.tracking.run import TrackedRun
from ocp_mamba.tracking.store import ui_link
from ocp_mamba.training.state import EpochResult

OPTIONS = {"output_dir": Path("out"), "system_metrics": False}


def rows(run: TrackedRun, **search: object) -> list[mlflow.entities.LoggedModel]:
    found = mlflow.search_logged_models(
        experiment_ids=[run.experiment_id], output_format="list", **search
    )
    return sorted((r for r in found if r.source_run_id == run.run_id), key=lambda r: r.name)


def history(run: TrackedRun, key: str) -> list[tuple[int, float]]:
    points = mlflow.MlflowClient().get_metric_history(run.run_id, key)
    return sorted((p.step, p.value) for p in points)


def epoch_result(epoch: int, config: ModelConfig, **changed: object) -> EpochResult:
    result = EpochResult(
        epoch=epoch,
        losses={"cosine": 0.5, "total": 0.5, "grad_norm": 1.5},
        lr=0.001,
        seconds=20.0,
        examples_per_second=100.0,
        val={"next_vec_cosine": 0.1 * epoch, "retrieval_p1": 0.25},
        improvement_trend=None if epoch == 1 else 0.1,
        is_best=True,
        is_last=False,
        max_epochs=3,
        model=OCPMambaLVM(config),
    )
    return replace(result, **changed)


@pytest.fixture(params=["sqlite", "http"])
def any_store(request: pytest.FixtureRequest, store: str) -> str:
    if request.param == "sqlite":
        return store
    return request.getfixturevalue("server").url


def test_training_shows_as_epochs_rows_dataset_and_models(
    any_store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    params = session.config_params(model=tiny_config, train=TrainConfig(lr=3e-3))
    with session.track(
        dataset, "folder/some.npz", store=any_store, params=params, **OPTIONS
    ) as run:
        result = train_tracked(run, dataset, tiny_config, tmp_path / "model.pt")
        run.log_models(tmp_path / "model.pt", result.best_epoch)
        run.log_results(
            {"next_vec_cosine": 0.7, "echo_loop_similarity": None, "bad": math.inf},
            {"next_vec_cosine": "pass"},
            {"metrics.version": "1"},
            epoch=result.best_epoch,
        )
        run.log_child("persistence", {"kind": "baseline"}, {"next_vec_cosine": 0.01})
        version = run.register(result.best_epoch)
        cost = run.log_cost()

    logged = mlflow.get_run(run.run_id)
    assert logged.info.status == "FINISHED"
    assert history(run, "val_next_vec_cosine") == [
        (r.epoch, pytest.approx(r.val["next_vec_cosine"])) for r in result.history
    ]
    assert [step for step, _ in history(run, "improvement_trend")] == [3]
    wanted = {"val_retrieval_p1", "train_loss_total", "train_loss_cosine", "train_grad_norm"}
    wanted |= {"learning_rate", "epoch_seconds", "examples_per_second", "best_epoch"}
    assert wanted <= set(logged.data.metrics)
    assert "train_loss_grad_norm" not in logged.data.metrics
    assert logged.data.metrics["best_val_next_vec_cosine"] == pytest.approx(result.best_cosine)
    assert logged.data.metrics["tracking_seconds"] == pytest.approx(cost["tracking_seconds"])
    assert 0 < cost["tracking_share"] < 1
    assert logged.data.params["train.lr"] == "0.003"
    tags = logged.data.tags
    assert tags["gate.next_vec_cosine"] == "pass"
    assert tags["metric.echo_loop_similarity"] == "not-run"
    assert tags["metric.bad"] == "not finite (inf) at step 3"
    assert "bad" not in logged.data.metrics
    assert tags["dataset.fingerprint"] == dataset.fingerprint
    assert tags["version.torch"] == torch.__version__
    assert len(tags["git.commit"]) == 40 or tags["git.commit"] == "unknown"

    inputs = {i.tags[0].value: i.dataset for i in logged.inputs.dataset_inputs}
    assert inputs["training"].name == "some-train"
    assert inputs["validation"].name == "some-val"
    assert inputs["training"].source == '{"uri": "some.npz"}'
    assert dataset.fingerprint.startswith(inputs["training"].digest)
    assert f'"examples": {dataset.n_examples("train")}' in inputs["training"].profile

    epochs = rows(run)
    assert [r.name for r in epochs] == ["epoch-001", "epoch-002", "epoch-003"]
    assert {m.step for m in logged.outputs.model_outputs} == {1, 2, 3}
    assert len(logged.outputs.model_outputs) == 3
    whole = {r.name for r in epochs if r.status == "READY"}
    assert whole == {f"epoch-{result.best_epoch:03d}", "epoch-003"}
    assert version.tags["model_id"] == epochs[result.best_epoch - 1].model_id
    assert version.tags["next_vec_cosine"] == "0.700000"
    assert version.aliases == ["candidate"]
    found = {m.key: m.value for m in epochs[0].metrics}
    assert found["val_next_vec_cosine"] == pytest.approx(result.history[0].val["next_vec_cosine"])
    on_val = [{"dataset_name": "some-val", "dataset_digest": inputs["validation"].digest}]
    assert len(rows(run, datasets=on_val, filter_string="metrics.next_vec_cosine > 0.6")) == 1

    (child,) = mlflow.search_runs(
        [run.experiment_id],
        f"tags.mlflow.parentRunId = '{run.run_id}'",
        output_format="list",
    )
    assert (child.info.status, child.data.metrics) == ("FINISHED", {"next_vec_cosine": 0.01})
    assert not list(Path("out").glob("*"))  # neither an offline queue nor an epoch's .pt is left


def test_weightless_row_cannot_be_loaded_even_if_registered(
    store: str, dataset: Dataset, tiny_config: ModelConfig
) -> None:
    with session.track(dataset, "some.npz", **OPTIONS) as run:
        run.on_epoch(epoch_result(1, tiny_config))
    (row,) = rows(run)
    assert row.status == "PENDING"
    mlflow.register_model(f"models:/{row.model_id}", "by-mistake")  # MLflow lets it
    for uri in (f"models:/{row.model_id}", "models:/by-mistake/1"):
        with pytest.raises(mlflow.MlflowException, match="cannot be loaded with MLflow"):
            mlflow.pyfunc.load_model(uri)


def test_every_nth_epoch_is_whole(
    store: str, dataset: Dataset, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    with session.track(dataset, "some.npz", checkpoint_every=2, **OPTIONS) as run:
        train_tracked(run, dataset, tiny_config, tmp_path / "model.pt", epochs=4)
        assert run.flush()
        before = [r.name for r in rows(run) if r.status == "READY"]
        run.log_models(tmp_path / "model.pt", 4)
    assert before == ["epoch-002", "epoch-004"]
    assert [r.name for r in rows(run) if r.status == "READY"] == before
    assert not list(Path("out").glob("*.pt"))


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ValueError("no\nlines"), "FAILED", "ValueError: no"),
        (KeyboardInterrupt(), "KILLED", "Ctrl-C"),
        (Killed("SIGTERM"), "KILLED", "SIGTERM"),
        (SystemExit(3), "FAILED", "SystemExit: 3"),
        (SystemExit(0), "FINISHED", "exit 0"),
    ],
)
def test_run_ends_as_what_happened(
    store: str, dataset: Dataset, error: BaseException, status: str, reason: str
) -> None:
    with (
        pytest.raises(type(error)),
        session.track(dataset, "some.npz", **OPTIONS) as run,
    ):
        raise error
    logged = mlflow.get_run(run.run_id)
    assert (logged.info.status, logged.data.tags["ended.reason"]) == (status, reason)


def test_adopts_the_run_of_mlflow_run(
    store: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = mlflow.MlflowClient()
    made = client.create_run("0")
    client.log_param(made.info.run_id, "lr", "1e-3")
    client.log_param(made.info.run_id, "seed", "0")
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    with session.track(
        dataset, "some.npz", params={"lr": 0.001, "seed": 0, "train.lr": 0.001}, **OPTIONS
    ) as run:
        pass
    logged = mlflow.get_run(made.info.run_id)
    assert run.run_id == made.info.run_id
    assert logged.info.experiment_id == "0"
    assert logged.data.params == {
        "lr": "1e-3",
        "resolved.lr": "0.001",
        "seed": "0",
        "train.lr": "0.001",
    }


def test_default_store_is_a_file_in_the_working_folder(store: str, dataset: Dataset) -> None:
    Path("mlruns/1/abc").mkdir(parents=True)
    with session.track(dataset, "some.npz", **OPTIONS) as run:
        pass
    assert run.store == store
    assert Path("mlflow.db").exists()


def test_unreachable_store_is_an_error_before_training(
    store: str, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    url = f"http://127.0.0.1:{free_port()}"
    with (
        pytest.raises(errors.TrackingError, match=f"tracking store {url}.*Start the server"),
        session.track(dataset, "some.npz", store=url, **OPTIONS),
    ):
        pytest.fail("the run must not open")


def test_not_finite_epoch_figures_become_tags(
    store: str, dataset: Dataset, tiny_config: ModelConfig
) -> None:
    with session.track(dataset, "some.npz", **OPTIONS) as run:
        run.on_epoch(
            epoch_result(1, tiny_config, val={"next_vec_cosine": 0.1, "retrieval_p1": math.nan})
        )
    logged = mlflow.get_run(run.run_id)
    assert logged.data.tags["metric.val_retrieval_p1"] == "not finite (nan) at step 1"
    assert "val_retrieval_p1" not in logged.data.metrics
    assert "metric.improvement_trend" not in logged.data.tags


def test_ui_link_lands_in_model_training() -> None:
    link, command = ui_link("sqlite:////data/mlflow.db", "7", port=5001)
    assert link == (
        "http://127.0.0.1:5001/#/experiments/7/runs"
        "?compareRunsMode=CHART&workflowType=machine_learning&viewStateShareKey=ocp-mamba-epochs"
    )
    assert command == "mlflow ui --backend-store-uri sqlite:////data/mlflow.db --port 5001"
    assert ui_link("http://host:1/", "7", "abc") == (
        "http://host:1/#/experiments/7/runs/abc?workflowType=machine_learning",
        None,
    )


def test_git_state_outside_git_is_unknown(tmp_path: Path) -> None:
    assert session.git_state(tmp_path) == {"git.commit": "unknown", "git.dirty": "unknown"}


def test_exit_code_of_a_killed_process_is_143() -> None:
    assert EXIT_KILLED == 143
    assert Killed("x").code == 143
    assert sys.platform != "win32"
