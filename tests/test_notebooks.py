from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tracked import train_tracked

from ocp_mamba import tracking
from ocp_mamba.config import ModelConfig
from ocp_mamba.data.file import Dataset

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "compare_epochs.ipynb"


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch, store: str) -> list[str]:
    """Run the notebook in a kernel of its own; returns each code cell's output as text."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    texts = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            shown = [o.get("text", "") or str(o.get("data", {})) for o in cell.outputs]
            texts.append("".join(shown))
    return texts


def test_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


def test_compare_epochs_shows_a_tracked_run(
    store: str,
    dataset: Dataset,
    tiny_config: ModelConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with tracking.track(dataset, "d.npz", output_dir="out", system_metrics=False) as run:
        result = train_tracked(run, dataset, tiny_config, tmp_path / "model.pt")
        run.log_models(tmp_path / "model.pt", result.best_epoch)
        for name, value in (("persistence", 0.0123), ("ridge", 0.0345)):
            run.log_child(name, {}, {"next_vec_cosine": value})
        run.log_results({}, {"next_vec_cosine": "fail"})
    shown = executed(tmp_path, monkeypatch, store)
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
