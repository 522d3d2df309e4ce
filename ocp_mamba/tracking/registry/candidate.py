"""Whether a new version takes the alias ``candidate`` from the one that has it."""

from __future__ import annotations

from collections.abc import Mapping

import mlflow
from mlflow.entities.model_registry import ModelVersion

from ocp_mamba.tracking.registry.aliases import (
    ALIASES_LOCK,
    CANDIDATE,
    locked,
    set_alias,
    version_at,
)
from ocp_mamba.tracking.registry.versions import tag_version

PASS, FAIL = "pass", "fail"
"""Values of the tags ``gate.<name>``."""

DISQUALIFYING = (
    "not_collapsed",
    "targets_vary",
    "no_leak",
    "no_encoder_mismatch",
    "inference_ready",
    "causal",
)
"""Gates without which a model's metrics mean nothing, or the model is of no use: a version that
fails one is no candidate, be it the first. The other gates say how good it is."""

FINGERPRINT = "dataset.fingerprint"
ALIAS_TAG, ANYWAY_TAG = "alias.candidate", "alias.candidate.anyway"
MOVED, NOT_MOVED = "moved", "not moved: "


def move_candidate(version: ModelVersion, *, anyway: bool = False) -> ModelVersion:
    """Move ``candidate`` to a version where its gates allow it.

    The tag ``alias.candidate`` says what became of it, see `alias_said`.

    Args:
        version: just registered, with its tags.
        anyway: move the alias in any case; a tag then says what spoke against it.

    Returns:
        The version, with that tag.
    """
    with locked(version.name, ALIASES_LOCK):
        present = version_at(version.name, CANDIDATE)
        objection = objection_to(version.tags, present)
        if objection is None or anyway:
            set_alias(version.name, CANDIDATE, version.version)
    if objection is None:
        tags = {ALIAS_TAG: MOVED}
    elif anyway:
        tags = {ALIAS_TAG: "moved anyway", ANYWAY_TAG: objection}
    else:
        tags = {ALIAS_TAG: f"{NOT_MOVED}{objection}"}
    tag_version(version, tags)
    return mlflow.MlflowClient().get_model_version(version.name, version.version)


def alias_said(version: ModelVersion) -> tuple[bool, str]:
    """Return, by a version's tags, whether ``candidate`` was moved to it and what spoke against."""
    said = version.tags.get(ALIAS_TAG, MOVED)
    if said.startswith(NOT_MOVED):
        return False, said.removeprefix(NOT_MOVED)
    return True, version.tags.get(ANYWAY_TAG, "")


def objection_to(tags: Mapping[str, str], present: ModelVersion | None) -> str | None:
    """Return what speaks against a new candidate in one clause, or None.

    Args:
        tags: of the new version.
        present: the version that is the candidate; None where there is none.
    """
    failed = {name for name, verdict in _gates(tags).items() if verdict == FAIL}
    useless = [name for name in DISQUALIFYING if name in failed]
    if useless:
        return f"the gate {useless[0]} fails"
    if present is None:
        return None
    if tags.get(FINGERPRINT) != present.tags.get(FINGERPRINT):
        return (
            f"version {present.version}, which has it, was trained on another dataset "
            f"({present.tags.get(FINGERPRINT, 'unknown')[:12]}…, this one is "
            f"{tags.get(FINGERPRINT, 'unknown')[:12]}…)"
        )
    worse = [name for name, verdict in _gates(present.tags).items() if verdict == PASS]
    worse = [name for name in worse if name in failed]
    if worse:
        return (
            f"the gate{'s' * (len(worse) > 1)} {', '.join(worse)} fail{'s' * (len(worse) == 1)}, "
            f"and version {present.version}, which has it, passes"
        )
    return None


def _gates(tags: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix("gate."): v for k, v in tags.items() if k.startswith("gate.")}
