import json
from pathlib import Path

import mlflow
import pytest
from click.testing import CliRunner, Result
from servers import free_port

from ocp_mamba.cli.runs import runs


def invoke(*words: str) -> Result:
    return CliRunner().invoke(runs, list(words))


def test_link_names_the_page_and_the_command(store: str) -> None:
    experiment_id = mlflow.create_experiment("ocp_mamba")
    done = invoke("link")
    assert done.exit_code == 0, done.output
    assert f"mlflow ui --backend-store-uri {store} --port 5000" in done.output
    assert f"#/experiments/{experiment_id}/runs?compareRunsMode=CHART&workflowType=mach" in (
        done.output
    )
    assert f"/experiments/{experiment_id}/runs/abc?" in invoke("link", "--run", "abc").output


def test_link_to_an_unknown_experiment_is_an_error(store: str) -> None:
    done = invoke("link", "--experiment", "absent")
    assert done.exit_code == 1
    assert done.output == f"Error: tracking store {store} has no experiment 'absent'\n"


@pytest.mark.parametrize("command", ["link", "stale"])
def test_store_that_does_not_answer_is_an_error(
    store: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    url = f"http://127.0.0.1:{free_port()}"
    done = invoke(command, "--store", url)
    assert done.exit_code == 1
    assert done.output.startswith(f"Error: tracking store {url}: ")
    assert done.output.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "version_key"),
    [("s.queue.jsonl", "queue_version"), ("of_an_earlier_version.spool.jsonl", "spool_version")],
)
def test_replay_sends_and_deletes(store: str, tmp_path: Path, name: str, version_key: str) -> None:
    run_id = mlflow.MlflowClient().create_run("0").info.run_id
    metric = {"key": "m", "value": 0.5, "time": 1, "step": 2, "dataset": None}
    lines = [
        {version_key: 1, "store": store},
        {"op": "log", "run_id": run_id, "metrics": [metric]},
        {"op": "end", "run_id": run_id, "status": "KILLED", "time": 3},
    ]
    path = tmp_path / name
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    done = invoke("replay", str(path))
    assert done.exit_code == 0
    assert done.output == f"2 operations sent; {path} deleted\nrun {run_id} ended, KILLED\n"
    run = mlflow.get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("KILLED", {"m": 0.5})


def test_replay_of_an_unknown_operation_is_an_error_and_keeps_the_file(
    store: str, tmp_path: Path
) -> None:
    path = tmp_path / "s.queue.jsonl"
    path.write_text(json.dumps({"queue_version": 1, "store": store}) + '\n{"op": "dance"}\n')
    done = invoke("replay", str(path))
    assert done.exit_code == 1
    assert "there is no operation 'dance'" in done.output
    assert path.exists()


@pytest.mark.parametrize("command", [[], ["replay"], ["stale"], ["link"]])
def test_help_has_examples(command: list[str]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0
    if command:
        assert "ocp-mamba runs " + command[0] in done.output
