from pathlib import Path

import nbformat
import pytest
from command import run
from data_maker import make_dataset
from nbclient import NotebookClient
from sweeps import Files, runs_of
from tracked import train_tracked

from ocp_mamba.baselines.simple import cheap_baselines
from ocp_mamba.config import ModelConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.jobs.artifacts import log_evaluation
from ocp_mamba.reports.evaluation_page import Report
from ocp_mamba.tracking import session

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
DATA = make_dataset(n_chains=150, n_concepts=60, seed=3)


def executed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> list[str]:
    """Run the notebook in a kernel of its own; returns each code cell's output as text."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [o.get("text", "") or str(o.get("data", {})) for o in cell.outputs]
            texts.append("".join(shown))
    return texts


@pytest.mark.parametrize("name", ["compare_epochs.ipynb", "evaluate_a_model.ipynb", "sweep.ipynb"])
def test_notebook_is_stored_without_outputs(name: str) -> None:
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_compare_epochs_shows_a_tracked_run(
    store: str,
    dataset: Dataset,
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with session.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
        result = train_tracked(run, dataset, tiny_config, tmp_path / "model.pt")
        run.log_models(tmp_path / "model.pt", result.best_epoch)
        for name, value in (("persistence", 0.0123), ("ridge", 0.0345)):
            run.log_child(name, {}, {"next_vec_cosine": value})
        run.log_results({}, {"next_vec_cosine": "fail"})
    shown = executed("compare_epochs.ipynb", tmp_path, monkeypatch, store)
    text = "\n".join(shown)
    assert run.run_id in text
    assert f"best epoch: {result.best_epoch}, cosine {result.best_cosine:.4f}" in text
    for record in result.history:
        assert f"{record.val['next_vec_cosine']:.4f}" in text
    assert "0.0123" in text
    assert "0.0345" in text
    assert "image/png" in text
    assert text.count("READY") >= 1
    assert text.count("PENDING") >= 1
    assert "fail" in shown[-1]


def test_evaluate_a_model_shows_an_evaluation_and_refuses_another_split(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated_report(name: str, split: str) -> Report:
        evaluated = evaluate(cheap_baselines(DATA)[name], DATA, split, name=name)
        report = Report(f"{name} on {split}", evaluated, DATA, gates={"no_leak": "fail"})
        with session.track(
            DATA, "d.npz", output_dir="out", run_name=f"{name} {split}", system_metrics=False
        ) as run:
            run.log_results(evaluated.flat(), report.gates)
            log_evaluation(run, report, tmp_path / run.run_id)
        return report

    evaluated_report("ridge", "test")
    other, shown = evaluated_report("context_mean", "val"), evaluated_report("ridge", "val")
    cells = executed("evaluate_a_model.ipynb", tmp_path, monkeypatch, store)
    text = "\n".join(cells)
    assert "run ridge val" in text
    assert DATA.fingerprint in text
    for stratum in ("", "seen/", "unseen/"):
        assert str(shown.evaluation.figures[f"{stratum}next_vec_cosine"]) in text
    assert "fail" in text
    assert "image/png" in text
    assert "ridge on val" in text
    assert "left out: these runs are not ranked" in cells[-1]
    assert "ridge test differs from ridge val in split: test, not val" in cells[-1]
    assert str(other.evaluation.figures["faiss_retrieval_p1"]) in cells[-1]


def test_sweep_shows_its_trials_its_best_and_its_plots(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*Files.make(tmp_path).new("--n-trials", 3, "--pruner", "none"))
    cells = executed("sweep.ipynb", tmp_path, monkeypatch, store)
    text = "\n".join(cells)
    (parent,) = runs_of("sweep")
    assert parent.info.run_id in text
    assert "study small, FINISHED" in text
    for child in runs_of("trial"):
        assert child.data.params["search.train.lr"] in text
    assert parent.data.tags["best.run"] in text
    assert text.count("image/png") == 6, "the epochs, and five plots of Optuna's"
    assert "--join small --retrain-best" in cells[-1]
