"""Sweeps that cannot be begun or joined, and what the command says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from command import run
from sweeps import SPACE, Files, runs_of

from ocp_mamba.config import TrainConfig
from ocp_mamba.sweep import defaults


def test_a_study_of_other_settings_is_not_gone_on_with(files: Files) -> None:
    run(*files.new("--n-trials", 1, epochs=1))
    (files.folder / "space.yaml").write_text(SPACE.replace("1e-2", "3e-2"))
    said = run(*files.new(epochs=2), code=2)
    assert "train.max_epochs: 1, now 2" in said
    assert "space train.lr: FloatDistribution(high=0.01" in said
    assert "--join small" in said
    assert "--warm-start small" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--data FILE is needed"),
        (["--join", "small"], "has no study 'small'; it has: none"),
        (["--join", "small", "--space", "s.yaml", "--max-epochs", 3], "--space, --max-epochs"),
        (["--data", "small.npz", "--objective", "loss"], "found loss, wanted each once of cosine"),
        (["--data", "small.npz", "--timeout", "soon"], "'soon' is no duration; write 90s, 30m"),
        (["--data", "small.npz", "--storage", "mysql://me:secret@h/d"], "found mysql"),
        (["--data", "small.npz", "--storage", "mlflow.db"], "MLflow's own database"),
        (["--data", "none.npz"], "none.npz"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_run(
    files: Files, words: list[Any], message: str
) -> None:
    said = run("sweep", *words, code=2)
    assert message in said
    assert "secret" not in said
    assert runs_of("sweep") == []


def test_another_dataset_cannot_join(files: Files, tmp_path: Path) -> None:
    run(*files.new("--n-trials", 1, epochs=1))
    other = tmp_path / "other"
    other.mkdir()
    Files.make(other, n_chains=61)
    said = run("sweep", "--join", "small", "--data", other / "small.npz", code=2)
    assert "give that one with --data" in said


def test_a_parent_in_another_tracking_store_is_named(
    files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*files.new("--n-trials", 1, epochs=1))
    elsewhere = f"sqlite:///{files.folder / 'elsewhere.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    said = run("sweep", "--join", "small", code=2)
    assert "elsewhere.db has no run" in said
    assert "MLFLOW_TRACKING_URI" in said


def test_the_help_has_the_real_defaults() -> None:
    said = " ".join(run("sweep", "--help").split())
    assert f"as many as a trial had, and at least {TrainConfig().max_epochs}." in said
    assert f"{defaults.DEFAULT_TRIALS} for a new study" in said
    assert f"[default: {defaults.GRACE_SECONDS};" in said
    assert f"the {defaults.WARM_TRIALS} best configurations" in said
    assert f"[{'|'.join(defaults.OBJECTIVES)}]" in said


def test_the_space_is_shown_with_its_default() -> None:
    assert "train:\n  lr: {type: float" in run("sweep", "--show-space")
