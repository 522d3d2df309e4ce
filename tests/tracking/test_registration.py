"""What a registered version says of itself, and a registration that is tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pytest
from logged import Logged, log_model
from mlflow.tracking import MlflowClient

from ocp_mamba.errors import RegistryError
from ocp_mamba.tracking.registry import MODEL_NAME, register_best, register_once
from ocp_mamba.tracking.registry.register import MODEL_NOTE

SHA = "a" * 64
TAGS = {"checkpoint.sha256": SHA, "bundle.sha256": "b" * 64}
RUN_TAGS = {
    "dataset.fingerprint": "d" * 64,
    "encoder.name": "random",
    "encoder.weight_hash": "e" * 64,
    "git.commit": "abc",
    "gate.no_leak": "pass",
    "gate.causal": "fail",
    "mlflow.note.content": "The verdict.",
    "process.host": "here",
}
METRICS = {
    "next_vec_cosine": 0.5,
    "val_next_vec_cosine": 0.1234567,
    "faiss_retrieval_p1": 0.25,
    "mrr": 0.75,
}


def stored(folder: Path, **changed: Any) -> Logged:
    facts: dict[str, Any] = {
        "tags": TAGS, "params": {"epoch": "2"}, "metrics": METRICS, "run_tags": RUN_TAGS,
    }  # fmt: skip
    return log_model(folder, {"model.pt": b"weights"}, **facts | changed)


def all_versions(name: str = MODEL_NAME) -> dict[int, dict[str, str]]:
    """The tags of each version."""
    found = MlflowClient().search_model_versions(f"name = '{name}'")
    return {int(version.version): version.tags for version in found}


def alias(name: str = MODEL_NAME) -> dict[str, str]:
    return {a: str(v) for a, v in MlflowClient().get_registered_model(name).aliases.items()}


def test_a_version_has_the_tags_of_its_model_and_its_run_and_no_others(
    store: str, tmp_path: Path
) -> None:
    made = stored(tmp_path)
    version = register_best(made.model_id, tags={"note": "mine"})
    assert version.tags == {
        "model_id": made.model_id,
        "run_id": made.run_id,
        "epoch": "2",
        **TAGS,
        "next_vec_cosine": "0.500000",
        "val_next_vec_cosine": "0.123457",
        "faiss_retrieval_p1": "0.250000",
        **{k: v for k, v in RUN_TAGS.items() if not k.startswith(("mlflow", "process"))},
        "note": "mine",
    }
    assert (version.name, str(version.version)) == (MODEL_NAME, "1")
    assert version.description == "The verdict."
    assert version.source == f"models:/{made.model_id}"
    assert alias() == {"candidate": "1"}
    assert MlflowClient().get_registered_model(MODEL_NAME).description == MODEL_NOTE


def test_what_is_not_known_is_said(store: str, tmp_path: Path) -> None:
    made = stored(tmp_path, tags={}, params={}, metrics={}, run_tags={})
    version = register_best(made.model_id)
    assert version.tags == {
        "model_id": made.model_id,
        "run_id": made.run_id,
        "epoch": "unknown",
        "checkpoint.sha256": "unknown",
        "bundle.sha256": "none",
    }
    assert not version.description


def test_names_aliases_and_words_are_those_that_were_asked_for(store: str, tmp_path: Path) -> None:
    made = stored(tmp_path)
    first = register_best(
        made.model_id, name="m", alias=None, tags={"epoch": "9"}, about="A.", description="D."
    )
    assert (first.name, first.tags["epoch"], first.description) == ("m", "9", "D.")
    assert alias("m") == {}
    assert MlflowClient().get_registered_model("m").description == "A."
    second = register_best(made.model_id, name="m", alias="mine", about="B.", description="")
    assert alias("m") == {"mine": "2"}
    assert second.aliases == ["mine"]
    assert not second.description
    assert MlflowClient().get_registered_model("m").description == "A.", "what it has stays"


def test_a_model_that_cannot_be_registered_is_refused(store: str, tmp_path: Path) -> None:
    empty = log_model(tmp_path, {"other.pt": b"x"}, name="epoch-001")
    with pytest.raises(RegistryError) as refused:
        register_best(empty.model_id)
    assert str(refused.value) == (
        f"model {empty.model_id} (epoch-001) holds metrics, no weights; only the best, the last "
        "and every N-th epoch (checkpoint_every) are stored whole"
    )
    alone = log_model(tmp_path, {"model.pt": b"x"}, of_run=False)
    with pytest.raises(RegistryError) as refused:
        register_best(alone.model_id)
    assert str(refused.value) == (
        f"model {alone.model_id} belongs to no run, so nothing is known of it"
    )
    with pytest.raises(RegistryError, match=r"^model m-0: .*m-0.* not found") as refused:
        register_best("m-0")
    assert "\n" not in str(refused.value)
    assert mlflow.MlflowClient().search_registered_models() == []


# --- once


def test_once_is_once_and_the_candidate_is_decided_once(store: str, tmp_path: Path) -> None:
    made = stored(tmp_path, run_tags=RUN_TAGS | {"gate.causal": "pass"})
    first = register_once(made.model_id, made.run_id, SHA)
    assert first.tags["registration"] == "whole"
    assert first.tags["alias.candidate"] == "moved"
    assert (first.name, first.aliases) == (MODEL_NAME, ["candidate"])
    client = MlflowClient()
    client.delete_registered_model_alias(MODEL_NAME, "candidate")
    again = register_once(made.model_id, made.run_id, SHA)
    assert (again.version, again.aliases) == (first.version, [])
    assert list(all_versions()) == [1]


def test_a_version_that_a_gate_speaks_against_is_registered_without_the_alias(
    store: str, tmp_path: Path
) -> None:
    made = stored(tmp_path)
    refused = register_once(made.model_id, made.run_id, SHA, "m")
    assert (refused.name, refused.tags["registration"], refused.aliases) == ("m", "whole", [])
    assert refused.tags["alias.candidate"] == "not moved: the gate causal fails"
    other = stored(tmp_path)
    forced = register_once(other.model_id, other.run_id, SHA, "m", alias_anyway=True)
    assert forced.aliases == ["candidate"]
    assert forced.tags["alias.candidate.anyway"] == "the gate causal fails"
    assert list(all_versions("m")) == [2, 1] or set(all_versions("m")) == {1, 2}


def test_each_run_and_each_file_has_a_version_of_its_own(store: str, tmp_path: Path) -> None:
    one, other = stored(tmp_path), stored(tmp_path)
    register_once(one.model_id, one.run_id, SHA)
    second = register_once(other.model_id, other.run_id, SHA)
    assert second.tags["run_id"] == other.run_id
    third = stored(tmp_path, tags=TAGS | {"checkpoint.sha256": "c" * 64})
    register_once(third.model_id, third.run_id, "c" * 64)
    assert set(all_versions()) == {1, 2, 3}


def test_weights_that_were_not_evaluated_are_not_registered(store: str, tmp_path: Path) -> None:
    made = stored(tmp_path)
    with pytest.raises(RegistryError) as refused:
        register_once(made.model_id, made.run_id, "c" * 64)
    assert str(refused.value) == (
        f"model {made.model_id} holds the weights aaaaaaaaaaaa, those that were evaluated are "
        "cccccccccccc; nothing was registered"
    )
    assert MlflowClient().search_registered_models() == []


def test_of_two_tries_whose_answers_were_lost_one_version_stays(store: str, tmp_path: Path) -> None:
    made = stored(tmp_path, run_tags=RUN_TAGS | {"gate.causal": "pass"})
    for tags in ({"registration": "begun"}, {"registration": "begun"}, {"by": "hand"}):
        register_best(made.model_id, alias=None, tags=tags)
    whole = register_once(made.model_id, made.run_id, SHA)
    assert (str(whole.version), whole.tags["registration"]) == ("1", "whole")
    assert alias() == {"candidate": "1"}
    assert set(all_versions()) == {1, 3}, "one that was made by hand is no try"


def test_a_whole_version_is_kept_before_older_tries(store: str, tmp_path: Path) -> None:
    made = stored(tmp_path)
    register_best(made.model_id, alias=None, tags={"registration": "begun"})
    register_best(made.model_id, alias=None, tags={"registration": "whole"})
    kept = register_once(made.model_id, made.run_id, SHA)
    assert str(kept.version) == "2"
    assert set(all_versions()) == {2}
    assert "alias.candidate" not in kept.tags, "it was decided before"
