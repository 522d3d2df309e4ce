"""The commands as a person types them, tracked for real in a sqlite store."""

import json
import shlex
import shutil
import subprocess
import sys

import click
import mlflow
import numpy as np
import pytest
import torch
from command import run
from data_maker import make_dataset
from drawing import drawing

from ocp_mamba.cli.main import main
from ocp_mamba.model.checkpoint import load_model, save_checkpoint
from ocp_mamba.tracking.store import use_store

TRAIN = ["--model-size", "tiny", "--n-layers", "1", "--batch-size", "16", "--quiet"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "small.npz"
    make_dataset(n_chains=120, n_concepts=60, seed=4).save(path)
    return path


def last_run():
    return mlflow.search_runs(
        experiment_names=["ocp_mamba"], order_by=["start_time DESC"], output_format="list",
        filter_string="tags.mlflow.parentRunId IS NULL",
    )[0]  # fmt: skip


@pytest.fixture(scope="module")
def trained(file, empty_database, tmp_path_factory):
    """A training with a config file, which several tests look at: folder, run, what it printed."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "run.toml").write_text("[model]\nd_state = 8\n[train]\nlr = 0.002\nmax_epochs = 9\n")
    with drawing(), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        shutil.copyfile(empty_database, folder / "mlflow.db")
        use_store(f"sqlite:///{folder / 'mlflow.db'}")
        said = run(
            "train", "--data", file, *TRAIN, "--max-epochs", 3, "--early-stopping",
            "--config", "run.toml", "--n-layers", "auto", "--infonce-weight", 0.1,
            "--output", folder / "out" / "model.pt",
        )  # fmt: skip
        return folder, last_run(), said


@pytest.fixture
def there(trained, store, monkeypatch):
    """The same, with its store and its folder in use."""
    monkeypatch.chdir(trained[0])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained[0] / 'mlflow.db'}")
    use_store()
    return trained


def test_train_tracks_evaluates_registers_and_says_where_to_look(file, there):
    tmp_path, tracked, said = there
    for name in ("next_vec_cosine", "faiss_retrieval_p1", "echo_loop_similarity",
                 "train_time_minutes", "inference_latency_ms", "improvement_trend", "ridge",
                 "ocp-mamba-lvm version 1, alias candidate",
                 "ocp-mamba serve models:/ocp-mamba-lvm@candidate",
                 "ocp-mamba ask --model models:/ocp-mamba-lvm@candidate 'concept é",
                 "mlflow ui --backend-store-uri", "workflowType=machine_learning",
                 "pool 60 concepts"):  # fmt: skip
        assert name in said, name

    assert tracked.info.status == "FINISHED"
    metrics, params, tags = tracked.data.metrics, tracked.data.params, tracked.data.tags
    assert params["ran.backend"] == "torch"
    assert params["ran.capture"] == "off (the device is cpu)"
    assert int(params["ran.parameters"]) == load_model(tmp_path / "out/model.pt").num_parameters()
    assert params["train.patience"] == "3"
    assert metrics["retrieval_pool_size"] == 60
    assert tags["mlflow.note.content"].startswith("**Failed gates: ")
    assert not any(name.startswith("interval.") for name in tags), "they are in the artifact"
    assert tags["baseline.persistence"].startswith("next_vec_cosine ")
    assert 0 < float(tags["retrieval.top1_ceiling"]) <= 1
    sections = {name.split("/")[0] for name in metrics if "/" in name}
    assert sections <= {"1_epochs", "2_baselines", "system"}, "the epochs' charts stand first"
    assert metrics["1_epochs/val_cosine"] == metrics["val_next_vec_cosine"]
    assert tags["gate.inference_ready"] == "pass"
    assert tags["gate.next_vec_cosine"] == "fail"
    assert tags["echo_encoder"] == "bank"
    client = mlflow.MlflowClient()
    assert len(client.get_metric_history(tracked.info.run_id, "val_next_vec_cosine")) == 3
    assert {a.path for a in client.list_artifacts(tracked.info.run_id, "plots")} == {
        f"plots/{n}" for n in ("cosine.png", "cosine.json", "loss.png", "loss.json")
    }
    reports = {a.path for a in client.list_artifacts(tracked.info.run_id, "reports")}
    assert reports >= {
        f"reports/{n}" for n in ("report.html", "evaluation.json", "per_example.npz")
    }
    page = (tmp_path / "out" / tracked.info.run_id / "report.html").read_text()
    assert all(name in page for name in (tracked.info.run_id, "nearest_neighbour", "Training"))
    children = mlflow.search_runs(
        experiment_names=["ocp_mamba"], output_format="list",
        filter_string=f"tags.mlflow.parentRunId = '{tracked.info.run_id}'",
    )  # fmt: skip
    assert {c.info.run_name for c in children} >= {"baseline ridge", "baseline persistence"}

    asked = next(line for line in said.splitlines() if "ocp-mamba ask" in line)
    words = shlex.split(asked.split("ocp-mamba ", 1)[1])
    assert "next concept" in run(*words)
    text = client.get_model_version_by_alias("ocp-mamba-lvm-text", "candidate")
    assert text.tags["vector_version"] == "1"
    assert text.tags["gate.inference_ready"] == "pass"

    said = run("evaluate", "--model", "models:/ocp-mamba-lvm@candidate", "--data", file)
    assert "wrote" in said
    evaluated = last_run()
    assert evaluated.data.metrics["next_vec_cosine"] == pytest.approx(metrics["next_vec_cosine"])
    assert evaluated.data.tags["kind"] == "evaluation"
    written = json.loads((tmp_path / "outputs/evaluation/evaluation.json").read_text())
    assert written["split"] == "val"
    assert "Evaluation of models:/" in (tmp_path / "outputs/evaluation/report.html").read_text()
    (linked,) = client.get_run(evaluated.info.run_id).inputs.model_inputs
    version = client.get_model_version("ocp-mamba-lvm", "1")
    assert linked.model_id == version.tags["model_id"]
    (read,) = evaluated.inputs.dataset_inputs
    assert read.dataset.name == "small-val"

    run("evaluate", "--model", tmp_path / "out/model.pt", "--data", file, "--split", "test")
    evaluated = last_run()
    (read,) = evaluated.inputs.dataset_inputs
    assert (read.dataset.name, read.tags[0].value) == ("small-test", "evaluation")
    assert evaluated.data.tags["test_split_evaluated"] == "true"
    page = (tmp_path / "outputs/evaluation/report.html").read_text()
    assert "Evaluation of model.pt on the test split" in page


def test_evaluate_evaluates_a_baseline_and_a_file(file, store, tmp_path):
    run("evaluate", "--model", "baseline:persistence", "--data", file, "--split", "test")
    tracked = last_run()
    assert tracked.data.metrics["faiss_retrieval_p1"] <= 0.2
    assert tracked.data.params["evaluated.split"] == "test"
    said = run("evaluate", "--model", "baseline:oracle", "--data", file, code=2)
    assert "baseline 'oracle' is unknown; choose one of persistence, context_mean" in said
    said = run("evaluate", "--model", tmp_path / "absent.pt", "--data", file, code=2)
    assert "absent.pt' not found; looked for" in said
    assert "`ocp-mamba train --output FILE.pt` writes one" in said
    assert "data build" not in said, "that makes datasets"
    for words in (("ask", "shark"), ("predict", "--data", file, "--out", "p.npz")):
        said = run(*words, "--model", "nothere.pt", code=2)
        assert "data build" not in said, words


def test_model_and_bank_of_different_encoders_are_refused(file, store, tmp_path):
    from ocp_mamba.config import ModelConfig
    from ocp_mamba.model.lvm import OCPMambaLVM

    save_checkpoint(
        tmp_path / "other.pt",
        OCPMambaLVM(ModelConfig(d_model=32, n_layers=1, headdim=16)),
        dataset_fingerprint="f" * 64,
        encoder={"name": "gtr-t5", "weight_hash": "1" * 64},
    )
    said = run("evaluate", "--model", tmp_path / "other.pt", "--data", file, code=2)
    assert "encoder mismatch" in said
    assert "gtr-t5" in said
    assert last_run().info.status == "FAILED"
    assert last_run().data.tags["gate.no_encoder_mismatch"] == "fail"


@pytest.mark.slow
def test_a_tmd_model_trains_and_needs_tmd_in_the_dataset(file, store, tmp_path):
    run("train", "--data", file, *TRAIN, "--max-epochs", 1, "--tmd", "--output", "tmd.pt")
    assert load_model(tmp_path / "tmd.pt").config.d_tmd == 16
    without = tmp_path / "without.npz"
    make_dataset(n_chains=60, tmd=False).save(without)
    said = run("train", "--data", without, *TRAIN, "--tmd", "true", code=2)
    assert "without.npz has no chain_tmd" in said
    run("evaluate", "--model", "tmd.pt", "--data", file)
    said = run("evaluate", "--model", "tmd.pt", "--data", without, code=2)
    assert "takes TMD vectors" in said


def test_an_older_npz_trains_after_a_report(store, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 60), ("val", 20), ("test", 20)):
        arrays[f"{split}_contexts"] = rng.standard_normal((n, 4, 768)).astype(np.float32)
        arrays[f"{split}_targets"] = rng.standard_normal((n, 768)).astype(np.float32)
        arrays[f"{split}_masks"] = np.ones((n, 4), bool)
    np.savez(tmp_path / "older.npz", **arrays)
    said = run("train", "--data", "older.npz", *TRAIN, "--max-epochs", 1, "--output", "m.pt")
    assert "normal" in said
    assert "pool 500 concepts" in said


def test_config_file_is_under_the_flags_and_over_the_defaults(trained):
    params = trained[1].data.params
    assert (params["train.lr"], params["train.max_epochs"]) == ("0.002", "3")
    assert params["train.batch_size"] == "16"
    assert (params["model.d_state"], params["model.n_layers"]) == ("8", "2")


def test_early_stopping_flag_forms(file):
    from ocp_mamba.config import DEFAULT_PATIENCE, TrainConfig, with_stopping

    assert f"{DEFAULT_PATIENCE} if not given" in " ".join(run("train", "--help").split())
    assert with_stopping(TrainConfig(), None, None).patience == 0
    assert with_stopping(TrainConfig(), True, None).patience == 3
    assert with_stopping(TrainConfig(patience=7), True, None).patience == 7
    assert with_stopping(TrainConfig(), True, 5).patience == 5
    assert with_stopping(TrainConfig(patience=7), False, 5).patience == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "absent.npz"], "file 'absent.npz' not found; looked for"),
        (["--data", "{file}", "--lr", "-1"], "lr"),
        (["--data", "{file}", "--n-layers", "many"], "many"),
        (["--data", "{file}", "--early-stopping", "perhaps"], "perhaps"),
        (["--data", "{file}", "--model-size", "huge"], "tiny"),
        (["--data", "{file}", "--bogus", "7"], "bogus"),
        (["--data", "{file}", "--lr", "inf"], "lr must be a finite number"),
        (["--data", "{file}", "--config", "absent.toml"], "absent.toml"),
        (["--data", "{text}"], "not a"),
        (["--data", "{file}", "--device", "cpu", "--backend", "cuda"], "the device is cpu; use"),
    ],
)
def test_bad_input_gets_one_clear_line_and_code_2(words, message, file, store, tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    filled = [w.format(file=file, text=tmp_path / "text.npz") for w in words]
    said = run("train", *filled, code=2)
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "outputs" / "model.pt").exists()


def test_an_empty_validation_split_is_refused_before_any_run_opens(store, tmp_path):
    path = tmp_path / "no_val.npz"
    make_dataset(n_chains=30, split=np.zeros(30, np.uint8)).save(path)
    assert "the val split has no OCP sequences" in run("train", "--data", path, code=2)
    said = run("evaluate", "--model", "baseline:ridge", "--data", path, code=2)
    assert "the val split has no OCP sequences" in said
    assert mlflow.search_runs(experiment_names=["ocp_mamba"], output_format="list") == []


def test_check_is_logged_as_a_run_unless_told_not_to(file, store):
    said = run("data", "check", file)
    tracked = last_run()
    assert tracked.info.run_id in said
    assert tracked.data.tags["kind"] == "data check"
    few = {"val_in_train_examples", "test_in_train_examples", "val_transitions_seen_share",
           "val_top1_ceiling"}  # fmt: skip
    charts = {n for n in tracked.data.metrics if not n.startswith("tracking_")}
    assert charts == {f"data/{name}" for name in few}, "a chart each, so there are few"
    verdict = tracked.data.tags["gate.no_leak"]
    assert verdict in ("pass", "fail")
    place = f"{tracked.info.artifact_uri}/reports/leak_report"
    numbers = json.loads(mlflow.artifacts.load_text(f"{place}.json"))
    assert "data/val_targets_seen_share" in numbers
    assert {name: numbers[name] for name in charts} == pytest.approx(
        {name: tracked.data.metrics[name] for name in charts}
    )
    assert mlflow.artifacts.load_text(f"{place}.md").strip() in said
    note = tracked.data.tags["mlflow.note.content"]
    assert note.startswith("**No gate failed." if verdict == "pass" else "**Failed gates: no_leak")
    assert "Compared with train: " in note
    assert "groups" in note
    assert "run" not in run("data", "check", file, "--no-track").splitlines()[-1]


@pytest.mark.parametrize("words", [["--device", "cuda"], ["--backend", "cuda"]])
def test_a_device_that_is_not_there_is_refused_before_the_data_and_the_store_are_opened(
    words, store, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (tmp_path / "text.npz").write_text("no dataset")
    said = run("train", "--data", "text.npz", *TRAIN, *words, code=2)
    assert f"{words[0].strip('-')} 'cuda' was forced" in said
    assert not list(tmp_path.glob("outputs/*"))


def test_an_unreachable_store_is_named_before_training(file, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    said = run("train", "--data", file, *TRAIN, "--max-epochs", 1, code=2)
    assert "http://127.0.0.1:9" in said


def every_command(group=main, words=()):
    """The words of each command, those of groups too."""
    yield list(words)
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            yield from every_command(group.get_command(context, name), (*words, name))


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_help_has_an_example(words):
    said = run(*words, "--help")
    assert "Example" in said
    assert "\\b" not in said
    assert f"ocp-mamba {' '.join(words)}" in said


def test_every_flag_of_train_has_a_help_text():
    command = main.get_command(click.Context(main), "train")
    assert [p.name for p in command.params if not p.help] == []


def test_help_of_the_program_loads_no_torch_and_lists_every_command():
    code = "import sys; from ocp_mamba.cli import main; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert all(name in run("--help") for name in ("train", "evaluate", "sweep", "data", "runs"))


def test_the_model_file_gives_unit_vectors(trained):
    with torch.inference_mode():
        y = load_model(trained[0] / "out" / "model.pt")(torch.randn(2, 5, 768))
    torch.testing.assert_close(y.norm(dim=-1), torch.ones(2))
