"""Promotion of a registered version to champion: on evidence, or by force with a reason."""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from ocp_mamba.errors import ConfigError, EvidenceError
from ocp_mamba.jobs.common import Log
from ocp_mamba.jobs.promotion.checks import Evidence, check_evidence
from ocp_mamba.jobs.promotion.measure import Comparison, Measured, compare, measure
from ocp_mamba.reports.promotion_card import Card
from ocp_mamba.tracking.registry import ModelVersion
from ocp_mamba.tracking.registry.aliases import (
    CANDIDATE,
    CHAMPION,
    MODEL_NAME,
    PROMOTION_LOCK,
    locked,
    make_champion,
    version_at,
)
from ocp_mamba.tracking.registry.text import follow_aliases
from ocp_mamba.tracking.registry.versions import (
    describe_version,
    downloaded,
    find_version,
    tag_version,
)

PROMOTED, REFUSED, FORCED, UNCHANGED = "promoted", "refused", "forced", "unchanged"

UNSERVABLE = frozenset({"files-missing", "weights-missing", "weights-unreadable"})
"""Faults of a version that no server could load or use: force does not help."""

PROMOTION_SECONDS = 3600.0
"""How long a promotion waits for another one of the same model to end."""


@dataclass(frozen=True)
class PromotionJob:
    """What a promotion is started with.

    Attributes:
        version: a number or an alias.
        name: of the registered model.
        force: promote the version whatever is found, unless it cannot be served.
        reason: why it is forced; kept with the version.
    """

    version: str = CANDIDATE
    name: str = MODEL_NAME
    force: bool = False
    reason: str = ""

    def __post_init__(self) -> None:
        """Refuse a force without a reason, and a reason without force.

        Raises:
            ConfigError: only one of the two is given.
        """
        if self.force != bool(self.reason.strip()):
            raise ConfigError(
                '--force needs --reason "…", which is kept with the version'
                if self.force
                else "--reason goes with --force"
            )


@dataclass(frozen=True)
class PromotionOutcome:
    """What became of a version.

    Attributes:
        version: the version.
        verdict: `PROMOTED`, `REFUSED`, `FORCED`, or `UNCHANGED` for the champion itself.
        faults: short names of what was found against it.
        card: Markdown, as it stands in the version's description.
    """

    version: ModelVersion
    verdict: str
    faults: Sequence[str]
    card: str


@dataclass
class _Findings:
    """What has been found of a version so far."""

    faults: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    evidence: Evidence | None = None
    measured: Measured | None = None
    comparison: Comparison | None = None

    def add(self, fault: str, reason: str) -> None:
        self.faults.append(fault)
        self.reasons.append(f"{fault}: {reason}")


def run_promotion(job: PromotionJob, log: Log) -> PromotionOutcome:
    """Check a version, compare it with the champion, and make it the champion if it may be.

    The card and the tags are written first, the aliases last.

    Raises:
        EvidenceError: ``version-missing``; every other fault is an outcome.
        RegistryError: there is no such registered model, or another promotion does not end.
    """
    with locked(job.name, PROMOTION_LOCK, PROMOTION_SECONDS):
        version = find_version(job.name, job.version)
        champion = version_at(job.name, CHAMPION)
        number, rival = str(version.version), str(champion.version) if champion else None
        if number == rival:
            log(f"{job.name} version {number} is the champion already; nothing changes")
            return PromotionOutcome(version, UNCHANGED, (), version.description or "")
        log(f"Checking {job.name} version {number}")
        found = _examine(version, champion, log)
        verdict = _verdict(job, found)
        outcome = _write(job, version, champion, found, verdict)
        if verdict == REFUSED:
            return outcome
        try:
            make_champion(job.name, number, instead_of=rival)
        except EvidenceError as error:
            found.add(error.fault, error.detail)
            return _write(job, version, champion, found, REFUSED)
        follow_aliases(job.name)
        return outcome


def _examine(version: ModelVersion, champion: ModelVersion | None, log: Log) -> _Findings:
    """Check, measure and compare, until a fault leaves nothing to go on with."""
    found = _Findings()
    folder = Path()
    try:
        with downloaded(version) as folder:
            found.evidence = check_evidence(version, folder)
            dataset = found.evidence.dataset
            log(f"Evaluating it again on {dataset.n_examples('val'):,} val sequences")
            found.measured = measure(found.evidence, version.tags)
        for gate in found.measured.refused_by:
            found.add("gate-failed", f"{gate} is {found.measured.gates[gate]}")
        if champion is not None:
            log(f"Comparing it with the champion, version {champion.version}")
            found.comparison = compare(champion, found.evidence, found.measured)
            for column in found.comparison.lost:
                difference = found.comparison.differences[column].text("+.3f")
                found.add("champion-better", f"{column}: difference to the champion {difference}")
    except EvidenceError as error:
        found.add(error.fault, error.detail.replace(f"{folder}/", ""))
    return found


def _verdict(job: PromotionJob, found: _Findings) -> str:
    if not found.faults:
        return PROMOTED
    return FORCED if job.force and not UNSERVABLE & set(found.faults) else REFUSED


def _write(
    job: PromotionJob,
    version: ModelVersion,
    champion: ModelVersion | None,
    found: _Findings,
    verdict: str,
) -> PromotionOutcome:
    """Write a version's tags and card."""
    now, user = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"), _user()
    faults = tuple(dict.fromkeys(found.faults))
    against = f"version {champion.version}" if champion else "none: there was no champion"
    card = _card(version, found, verdict, job, {"compared with": against, "by": user, "at": now})
    text = card.to_markdown()
    tags = {
        "promotion.verdict": verdict,
        "promotion.faults": ", ".join(faults) or "none",
        "promotion.time": now,
        "promotion.user": user,
        "promotion.compared_with": str(champion.version) if champion else "none",
        "promotion.reason": job.reason if verdict == FORCED else "every gate passed"
        if verdict == PROMOTED else "; ".join(found.reasons),
        **_difference_tags(found.comparison),
    }  # fmt: skip
    tag_version(version, tags)
    describe_version(version, text)
    return PromotionOutcome(version, verdict, faults, text)


def _difference_tags(comparison: Comparison | None) -> dict[str, str]:
    if comparison is None:
        return {}
    return {
        f"promotion.difference.{column.replace(', ', '_').replace('@', '')}": figure.text("+.4f")
        for column, figure in comparison.differences.items()
    }


def _card(
    version: ModelVersion,
    found: _Findings,
    verdict: str,
    job: PromotionJob,
    facts: Mapping[str, str],
) -> Card:
    sentence = {
        PROMOTED: "Promoted: every gate passes, and "
        + ("it does not lose to the champion." if found.comparison else "there was no champion."),
        REFUSED: "Refused.",
        FORCED: f"Promoted by force. Reason given: {job.reason}",
    }[verdict]
    measured, comparison = found.measured, found.comparison
    return Card(
        f"Version {version.version}. {sentence}",
        found.reasons,
        {**facts, **_identity(found.evidence)},
        measured.evaluation if measured else None,
        comparison.evaluation if comparison else None,
        comparison.differences if comparison else {},
        measured.baselines if measured else {},
        measured.gates if measured else {},
    )


def _identity(evidence: Evidence | None) -> dict[str, str]:
    if evidence is None:
        return {}
    manifest = evidence.bundle.manifest
    return {
        "run": f"{manifest['run_id']}, epoch {manifest['epoch']}",
        "trained on dataset": manifest["dataset_fingerprint"],
        "evaluation set": manifest["evaluation_fingerprint"],
        "encoder": str(manifest["encoder"].get("name", "unknown")),
    }


def _user() -> str:
    """The name of who promotes, as the system knows it."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in a container
        return "unknown"
