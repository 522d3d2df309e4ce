"""A version measured again: its evaluation, its gates, and its difference to the champion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ocp_mamba.data.analysis.leakage import LEARN_ALL, check
from ocp_mamba.embeddings.index import BankIndex
from ocp_mamba.errors import CheckpointError, EvidenceError
from ocp_mamba.evaluation import gates
from ocp_mamba.evaluation.evaluate import evaluate
from ocp_mamba.evaluation.metrics import METRICS_VERSION
from ocp_mamba.evaluation.result import Evaluation, paired_difference
from ocp_mamba.jobs.baselines import evaluate_cheap
from ocp_mamba.jobs.open_model import what_it_learnt
from ocp_mamba.jobs.promotion.checks import Evidence, open_bundle
from ocp_mamba.jobs.promotion.evidence import headline_figures
from ocp_mamba.model.checkpoint import Checkpoint, load_checkpoint
from ocp_mamba.reports.tables import COLUMNS
from ocp_mamba.serving.bundle import CHECKPOINT, MANIFEST
from ocp_mamba.stats import Figure
from ocp_mamba.tracking.registry import ModelVersion
from ocp_mamba.tracking.registry.versions import downloaded

SCORE_TOLERANCE = 1e-3
"""How far a metric may be from the one at training: the sums of another processor, a tie or two."""

TRAINED_GATES = ("beats_trained_baselines_cosine", "beats_trained_baselines_p1")
"""Their baselines are not in the bundle; the verdict at training counts."""

MAY_NOT_RUN = ("improvement_trend", "train_time", *TRAINED_GATES)
"""Gates that say how a training went, or that were not asked for: ``not-run`` is no refusal."""


@dataclass(frozen=True)
class Measured:
    """What a version's evaluation set shows.

    Attributes:
        evaluation: of the version.
        baselines: by name.
        gates: verdicts by name; those of `TRAINED_GATES` are the training's.
        index: of the bank.
    """

    evaluation: Evaluation
    baselines: Mapping[str, Evaluation]
    gates: Mapping[str, str]
    index: BankIndex

    @property
    def refused_by(self) -> list[str]:
        """The gates that keep the version from promotion."""
        return [
            name
            for name, verdict in self.gates.items()
            if verdict == gates.FAIL or (verdict != gates.PASS and name not in MAY_NOT_RUN)
        ]


@dataclass(frozen=True)
class Comparison:
    """A version against the champion, on the version's evaluation set.

    Attributes:
        champion: the version that was compared with.
        evaluation: of the champion.
        differences: version minus champion, paired, for each column of `reports.tables.COLUMNS`.
    """

    champion: ModelVersion
    evaluation: Evaluation
    differences: Mapping[str, Figure]

    @property
    def lost(self) -> list[str]:
        """The columns in which the interval of the difference lies wholly below zero."""
        return [
            column
            for column, figure in self.differences.items()
            if figure.high is not None and figure.high < 0
        ]


def measure(evidence: Evidence, tags: Mapping[str, str]) -> Measured:
    """Evaluate a version on its evaluation set, and compare with what its training wrote.

    Args:
        evidence: of the version.
        tags: of the version.

    Raises:
        EvidenceError: ``metrics-version``, ``scores-differ``, ``evaluation-leaked`` or
            ``gates-differ``.
    """
    manifest, dataset = evidence.bundle.manifest, evidence.dataset
    if manifest["metrics_version"] != METRICS_VERSION:
        raise EvidenceError(
            "metrics-version",
            f"the metrics are of version {manifest['metrics_version']}, this package computes "
            f"version {METRICS_VERSION}: they are not the same numbers; train again",
        )
    index = BankIndex(dataset.bank, "auto")
    learnt = what_it_learnt("this version", evidence.bundle.checkpoint.learnt)
    evaluation = evaluate(
        evidence.model, dataset, "val", name="this version", index=index, trained_on=learnt
    )
    exposure = evaluation.exposure
    if exposure.learnt is not None and exposure.learnt > exposure.by_error:
        raise EvidenceError(
            "evaluation-leaked",
            f"the model learnt {exposure.learnt:,} of the {evaluation.n_examples:,} sequences that "
            "it is evaluated on, answer included, by what its own file says",
        )
    _require_scores(manifest["metrics"], headline_figures(evaluation))
    training = manifest.get("training", {})
    leaks = check(dataset, min_context=training.get("min_context", LEARN_ALL))
    if leaks.leaks:
        raise EvidenceError("evaluation-leaked", leaks.warnings[0])
    baselines = evaluate_cheap(dataset, index, learnt)
    bank = dataset.meta.get("encoder", {})
    verdicts = gates.evaluate_gates(
        evaluation,
        baselines,
        trends=training.get("trends", ()),
        train_minutes=training.get("minutes"),
        inference_ready=True,  # the recorded predictions were compared before
        leaks=leaks.leaks,
        same_encoder=gates.same_encoder(evidence.bundle.checkpoint.encoder, bank),
    )
    _require_gates(manifest["gates"], verdicts)
    trained = {name: tags.get(f"gate.{name}", gates.NOT_RUN) for name in TRAINED_GATES}
    return Measured(evaluation, baselines, verdicts | trained, index)


def _require_scores(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse a manifest whose metrics are not those of its own files."""
    if recorded.keys() != now.keys():
        names = ", ".join(sorted(recorded.keys() ^ now.keys()))
        raise EvidenceError("scores-differ", f"only one of training and now has {names}")
    for name, figure in now.items():
        for key, value in figure.items():
            said = recorded[name].get(key)
            same = said == value
            if isinstance(said, float | int) and isinstance(value, float):
                same = abs(said - value) <= SCORE_TOLERANCE
            if not same:
                raise EvidenceError(
                    "scores-differ",
                    f"{name} ({key}) is {said} in the manifest; evaluated again, it is {value}",
                )


def _require_gates(recorded: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse a manifest that says ``pass`` where the gate does not."""
    wrong = [n for n, v in recorded.items() if v == gates.PASS and now.get(n) != gates.PASS]
    if wrong:
        raise EvidenceError(
            "gates-differ", f"{wrong[0]} is pass in the manifest, and {now.get(wrong[0])} now"
        )


def compare(champion: ModelVersion, evidence: Evidence, measured: Measured) -> Comparison:
    """Evaluate the champion on a version's evaluation set, and take paired differences.

    Args:
        champion: with its tags.
        evidence: of the version.
        measured: of the version.

    Raises:
        EvidenceError: ``champion-changed``, its files are not what its training wrote;
            ``champion-other-data``, it learnt from another dataset, so that either of the two may
            have learnt what the other is evaluated on.
    """
    saved = _checkpoint_of(champion)
    ours = evidence.bundle.manifest["dataset_fingerprint"]
    if saved.dataset_fingerprint != ours:
        raise EvidenceError(
            "champion-other-data",
            f"the champion, version {champion.version}, was trained on dataset "
            f"{saved.dataset_fingerprint[:12]}…, this version on {ours[:12]}…: each may have "
            "learnt what the other is evaluated on. Register models of other data under another "
            "name, `train --model-name`",
        )
    theirs = evaluate(
        saved.build_model(),
        evidence.dataset,
        "val",
        name="champion",
        index=measured.index,
        trained_on=what_it_learnt("the champion", saved.learnt),
    )
    differences = {
        column: paired_difference(measured.evaluation, theirs, metric, stratum)
        for column, (metric, stratum) in COLUMNS.items()
    }
    return Comparison(champion, theirs, differences)


def _checkpoint_of(champion: ModelVersion) -> Checkpoint:
    """The champion's weights; one that was registered without a bundle has no digests to check."""
    with downloaded(champion) as folder:
        try:
            if (folder / "artifacts" / MANIFEST).exists():
                return open_bundle(champion, folder).checkpoint
            return load_checkpoint(folder / "artifacts" / CHECKPOINT)
        except (EvidenceError, CheckpointError) as error:
            raise EvidenceError("champion-changed", str(error)) from error
