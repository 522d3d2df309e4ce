"""Which new version takes the alias ``candidate``."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.entities.model_registry import ModelVersion
from mlflow.tracking import MlflowClient

from ocp_mamba.errors import RegistryError
from ocp_mamba.tracking.registry import candidate
from ocp_mamba.tracking.registry.aliases import ALIASES_LOCK, aliases_of, locked
from ocp_mamba.tracking.registry.candidate import alias_said, move_candidate, objection_to

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


def test_it_is_decided_and_moved_under_the_lock_of_the_models_aliases(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved_to: list[str] = []

    def set_alias(name: str, alias: str, version: str) -> None:
        with pytest.raises(RegistryError, match="held the lock"), locked(NAME, ALIASES_LOCK, 0.01):
            raise AssertionError
        moved_to.append(f"{name} {alias} {version}")

    monkeypatch.setattr(candidate, "set_alias", set_alias)
    useless = register(folder, gate__no_leak="fail")
    assert alias_said(move_candidate(useless)) == (False, "the gate no_leak fails")
    assert moved_to == []
    move_candidate(register(folder))
    assert moved_to == ["m candidate 2"]


# --- what speaks against a candidate, without a store


def version(number: int, **tags: str) -> Any:
    return SimpleNamespace(version=number, tags={k.replace("__", "."): v for k, v in tags.items()})


def objection(present: Any, **tags: str) -> str | None:
    return objection_to(version(0, **tags).tags, present)


@pytest.mark.parametrize(
    "gate",
    [
        "not_collapsed",
        "targets_vary",
        "no_leak",
        "no_encoder_mismatch",
        "inference_ready",
        "causal",
    ],
)
def test_a_model_whose_metrics_mean_nothing_is_no_candidate(gate: str) -> None:
    for present in (None, version(1, **{f"gate__{gate}": "fail"})):
        assert objection(present, **{f"gate__{gate}": "fail"}) == f"the gate {gate} fails"
        assert objection(present, **{f"gate__{gate}": "not-run"}) is None
        assert objection(present, **{f"gate__{gate}": "pass"}) is None
        assert objection(present, **{gate: "fail"}) is None, "only tags of gates count"


def test_the_first_of_several_reasons_is_told_in_their_order() -> None:
    both = {"gate__no_leak": "fail", "gate__not_collapsed": "fail"}
    assert objection(None, **both) == "the gate not_collapsed fails"


def test_another_dataset_is_told_by_both_fingerprints() -> None:
    ours, theirs = "a" * 64, "b" * 64
    assert objection(version(7, dataset__fingerprint=theirs), dataset__fingerprint=ours) == (
        "version 7, which has it, was trained on another dataset (bbbbbbbbbbbb…, this one is "
        "aaaaaaaaaaaa…)"
    )
    assert objection(version(7), dataset__fingerprint=ours) == (
        "version 7, which has it, was trained on another dataset (unknown…, this one is "
        "aaaaaaaaaaaa…)"
    )
    assert objection(version(7, dataset__fingerprint=theirs)) == (
        "version 7, which has it, was trained on another dataset (bbbbbbbbbbbb…, this one is "
        "unknown…)"
    )
    assert objection(version(7)) is None, "both are unknown"


def test_what_the_candidate_passes_must_not_fail() -> None:
    present = version(3, gate__a="pass", gate__b="pass", gate__c="fail", gate__d="not-run")
    assert objection(present, gate__a="fail") == (
        "the gate a fails, and version 3, which has it, passes"
    )
    assert objection(present, gate__b="fail", gate__a="fail") == (
        "the gates a, b fail, and version 3, which has it, passes"
    )
    assert objection(present, gate__c="fail", gate__d="fail", gate__e="fail") is None
    assert objection(present, gate__a="not-run") is None


def test_the_tag_says_what_became_of_the_alias() -> None:
    assert alias_said(version(1)) == (True, "")
    assert alias_said(version(1, alias__candidate="moved")) == (True, "")
    against = version(1, alias__candidate="not moved: the gate x fails")
    assert alias_said(against) == (False, "the gate x fails")
    anyway = version(1, alias__candidate="moved anyway", alias__candidate__anyway="the gate x")
    assert alias_said(anyway) == (True, "the gate x")
