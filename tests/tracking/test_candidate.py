"""Which new version takes the alias ``candidate``."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ocp_mamba.tracking.registry.aliases import aliases_of
from ocp_mamba.tracking.registry.candidate import alias_said, move_candidate

NAME = "m"
GOOD = {
    "gate.not_collapsed": "pass",
    "gate.no_leak": "pass",
    "gate.next_vec_cosine": "pass",
    "gate.beats_baselines_p1": "fail",
    "gate.beats_trained_baselines_p1": "not-run",
    "dataset.fingerprint": "a" * 64,
}


@pytest.fixture
def folder(store: str, tmp_path: Path) -> Path:
    MlflowClient().create_registered_model(NAME)
    return tmp_path


def register(folder: Path, **changed: str) -> ModelVersion:
    tags = GOOD | {key.replace("__", "."): value for key, value in changed.items()}
    return MlflowClient().create_model_version(NAME, str(folder), tags=tags)


def moved(version: ModelVersion, *, anyway: bool = False) -> tuple[bool, str]:
    """Whether the alias moved, after the registry and the tag agree, and what spoke against it."""
    said = alias_said(move_candidate(version, anyway=anyway))
    assert (aliases_of(NAME).get("candidate") == str(version.version)) == said[0]
    return said


def test_a_first_version_that_fails_a_gate_of_quality_is_the_candidate(folder: Path) -> None:
    assert moved(register(folder, gate__next_vec_cosine="fail")) == (True, "")


@pytest.mark.parametrize(
    "gate", ["not_collapsed", "no_leak", "no_encoder_mismatch", "inference_ready"]
)
def test_a_first_version_that_is_of_no_use_is_not(folder: Path, gate: str) -> None:
    assert moved(register(folder, **{f"gate__{gate}": "fail"})) == (False, f"the gate {gate} fails")
    assert aliases_of(NAME) == {}


def test_a_version_that_fails_what_the_candidate_passes_does_not_replace_it(folder: Path) -> None:
    moved(register(folder))
    worse = register(folder, gate__next_vec_cosine="fail")
    assert moved(worse) == (
        False,
        "the gate next_vec_cosine fails, and version 1, which has it, passes",
    )
    assert moved(register(folder)) == (True, "")
    assert moved(register(folder, gate__beats_baselines_p1="pass")) == (True, "")
    assert moved(register(folder))[0] is False, "it fails what version 4 passes"


def test_another_dataset_does_not_take_the_alias(folder: Path) -> None:
    moved(register(folder))
    other = register(folder, dataset__fingerprint="b" * 64)
    said = moved(other)
    assert not said[0]
    assert "version 1, which has it, was trained on another dataset (aaaaaaaaaaaa…" in said[1]


def test_anyway_moves_it_and_is_noted(folder: Path) -> None:
    moved(register(folder))
    collapsed = register(folder, gate__not_collapsed="fail")
    assert moved(collapsed, anyway=True) == (True, "the gate not_collapsed fails")
    kept = MlflowClient().get_model_version(NAME, collapsed.version)
    assert kept.tags["alias.candidate"] == "moved anyway"
    assert kept.tags["alias.candidate.anyway"] == "the gate not_collapsed fails"
    assert moved(register(folder), anyway=True) == (True, "")
