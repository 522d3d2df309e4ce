"""The public names: what a script or a notebook does with them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from data_maker import TINY, make_dataset
from torch import Tensor

import ocp_mamba
from ocp_mamba import evaluate, train
from ocp_mamba.api import MODEL_SETTINGS, TRAIN_SETTINGS
from ocp_mamba.config import ModelConfig, TrainConfig
from ocp_mamba.data.dataset import Dataset
from ocp_mamba.errors import ConfigError, JobError, OcpMambaError
from ocp_mamba.model import compiled_step
from ocp_mamba.model.checkpoint import save_checkpoint
from ocp_mamba.model.lvm import OCPMambaLVM

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"docs/api.md": 7, "README.md": 1}
"""Pages whose Python runs, and how many blocks each has."""
WORDS = ["sand tiger", "shark", "elasmobranch"]


def quiet(text: str) -> None:
    """Print nothing."""


@pytest.fixture(scope="module")
def named() -> Dataset:
    """A dataset whose first concepts are those of the page."""
    texts = np.array([*WORDS, *(f"concept {i}" for i in range(37))])
    return make_dataset(n_chains=60, n_concepts=40, seed=0, texts=texts)


def untrained(path: Path, dataset: Dataset) -> OCPMambaLVM:
    torch.manual_seed(0)
    model = OCPMambaLVM(ModelConfig(**TINY)).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    encoder = dataset.meta["encoder"]
    save_checkpoint(path, model, dataset_fingerprint=dataset.fingerprint, encoder=encoder)
    return model


class LastVector:
    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
        return seq_vectors


class Answering:
    """Answers as a function of the vectors says."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Any:
        return self.answer(seq_vectors)


def test_each_public_name_is_found_and_another_is_not() -> None:
    for name in ocp_mamba.__all__:
        assert getattr(ocp_mamba, name) is not None
    assert set(ocp_mamba.__all__) <= set(dir(ocp_mamba))
    with pytest.raises(AttributeError, match=r"'ocp_mamba' has no attribute 'evaluat'"):
        _ = ocp_mamba.evaluat  # type: ignore[attr-defined]


def test_an_own_predictor_gets_gates_a_report_and_a_run(
    store: str, dataset: Dataset, tmp_path: Path
) -> None:
    said: list[str] = []
    outcome = evaluate(LastVector(), dataset, name="last vector", log=said.append)
    assert outcome.gates["beats_baselines_cosine"] == "fail"
    assert outcome.gates["no_encoder_mismatch"] == "not-run"
    same = outcome.baselines["persistence"].figures["next_vec_cosine"]
    assert outcome.evaluation.figures["next_vec_cosine"] == same
    assert outcome.page == Path("outputs/evaluation/report.html")
    assert "last vector" in outcome.page.read_text(encoding="utf-8")
    run = mlflow.MlflowClient().get_run(outcome.run_id)
    assert run.data.tags["gate.beats_baselines_cosine"] == "fail"
    assert run.data.params["evaluated.model"] == "last vector"
    assert run.data.metrics["next_vec_cosine"] == pytest.approx(same.value)
    assert any("nearest_neighbour" in text for text in said)


def test_a_predictor_without_positions_is_given_each_prefix(
    dataset: Dataset, tmp_path: Path
) -> None:
    """What it says is what a predictor with positions says that does the same."""

    class Contexts:
        def predict(self, contexts: Tensor) -> Tensor:
            assert contexts.any(dim=-1).all(), "no padding"
            return F.normalize(contexts.mean(dim=1), dim=-1)

    outcome = evaluate(
        Contexts(), dataset, output=tmp_path, track=False, log=quiet, trained_on=dataset
    )
    same = outcome.baselines["context_mean"].figures["next_vec_cosine"]
    assert outcome.evaluation.figures["next_vec_cosine"].value == pytest.approx(same.value)
    assert outcome.gates["causal"] == "pass"
    assert outcome.evaluation.strata["seen"].any()
    assert outcome.gates["no_leak"] == "not-run"
    wrong = SimpleNamespace(predict=lambda contexts: contexts)
    with pytest.raises(JobError, match=r"predict gave .*, 768\]\); wanted is a .* one for each"):
        evaluate(wrong, dataset, output=tmp_path, against=False, track=False, log=quiet)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (lambda x: x.numpy(), "gave a ndarray"),
        (lambda x: x[:, -1], r"gave float32 \(\d+, 768\)"),
        (lambda x: x.double(), "gave float64"),
        (lambda x: x * torch.nan, "not finite"),
        (lambda x: 2 * x, r"rows of length 2 to 2; .*; normalize them"),
    ],
)
def test_an_answer_that_is_none_is_refused_by_name(
    answer: Any, found: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(JobError, match=f"predictor mine: .*{found}.*") as raised:
        evaluate(Answering(answer), dataset, name="mine", output=tmp_path, track=False, log=quiet)
    assert "wanted is a float32 torch.Tensor (" in str(raised.value)


def test_an_object_that_predicts_nothing_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"predictor object: it has no method predict_all"):
        evaluate(object(), dataset, output=tmp_path, track=False, log=quiet)  # type: ignore[arg-type]


def test_a_module_is_in_evaluation_mode_meanwhile_and_is_told_tmd(
    dataset: Dataset, tmp_path: Path
) -> None:
    class Told(torch.nn.Module):
        d_tmd = 16

        def predict_all(self, seq_vectors: Tensor, tmd: Tensor | None = None) -> Tensor:
            assert not self.training
            assert tmd is not None
            assert tmd.shape == (len(seq_vectors), 16)
            return F.normalize(seq_vectors.cumsum(dim=1), dim=-1)

    module = Told()
    outcome = evaluate(module, dataset, output=tmp_path, against=False, track=False, log=quiet)
    assert module.training
    assert outcome.evaluation.predictor == "Told"
    assert outcome.run_id == ""
    assert "not tracked" in outcome.page.read_text(encoding="utf-8")
    without = make_dataset(tmd=False)
    with pytest.raises(JobError, match="predictor Told takes TMD vectors"):
        evaluate(module, without, output=tmp_path, against=False, track=False, log=quiet)


def test_a_model_is_evaluated_as_an_object_and_as_a_file(dataset: Dataset, tmp_path: Path) -> None:
    model = untrained(tmp_path / "m.pt", dataset)
    dataset.save(tmp_path / "d.npz")
    same = [
        evaluate(what, data, output=tmp_path, against=False, track=False, log=quiet)
        for what, data in ((model, dataset), (tmp_path / "m.pt", tmp_path / "d.npz"))
    ]
    assert [o.evaluation.predictor for o in same] == ["OCPMambaLVM", "m.pt"]
    figures = [o.evaluation.figures["next_vec_cosine"] for o in same]
    assert figures[0] == figures[1]
    assert same[1].gates["no_encoder_mismatch"] == "pass"


def test_settings_that_do_not_exist_are_refused_with_those_that_do(dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=r"unknown settings: n_layer\. .* n_layers.* max_epochs"):
        train("d.npz", n_layer=3)
    with pytest.raises(OcpMambaError, match=r"dataset\.save\(path\) writes it"):
        train(dataset)  # type: ignore[arg-type]


def test_a_setting_belongs_to_the_model_or_to_the_training() -> None:
    assert not MODEL_SETTINGS & TRAIN_SETTINGS
    assert set(vars(ModelConfig())) - {"relations"} == MODEL_SETTINGS
    assert set(vars(TrainConfig())) == TRAIN_SETTINGS


def run_page(page: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """Run a page's blocks one after the other; returns its names, and what each block printed."""
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == PAGES[page]
    names: dict[str, Any] = {}
    printed = []
    for block in blocks:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the step runs as it is", UserWarning)
            exec(compile(block, page, "exec"), names)
        printed.append(capsys.readouterr().out)
    return names, printed


def test_the_code_of_the_pages_runs(
    store: str,
    named: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*given: object) -> None:
        raise RuntimeError("compiling takes half a minute")

    monkeypatch.setattr(compiled_step, "_compiled", fails)
    named.save(tmp_path / "ocp_training_9k.npz")
    untrained(tmp_path / "outputs" / "model.pt", named)
    names, printed = run_page("docs/api.md", capsys)
    assert re.fullmatch(r"(-?[01]\.\d{3}  .+\n){5}", printed[1])
    assert names["five"].shape == (1, 5, 768)
    trained = names["outcome"]
    assert trained.fit.best_epoch == 1
    assert (tmp_path / "outputs" / "tiny.pt").is_file()
    tracked = mlflow.search_runs(search_all_experiments=True, output_format="list")
    runs = {run.info.run_id: run.data.tags for run in tracked}
    assert "kind" not in runs[trained.run_id]
    assert [tags.get("kind") for tags in runs.values()].count("evaluation") == 1
    names, printed = run_page("README.md", capsys)
    assert printed[0].count("'concept'") == 5
    assert names["outcome"].gates["beats_baselines_cosine"] == "fail"
